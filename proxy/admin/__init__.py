"""What operators may do through the admin API: keys, usage, exchanges in flight, upstreams, reload.

`admin` puts the routes together; `keys`, `usage` and `processes` have one group each. What is asked of the processes
that work (`inside`) is asked in the same way of one process and of several.
"""
