"""Floor 1: talking to upstreams over HTTP/1.1 connections of our own."""
