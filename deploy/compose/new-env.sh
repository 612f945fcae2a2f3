#!/bin/sh
# Make .env beside this script out of .env.example, with a random secret for every empty variable. Never overwrites.
set -eu
cd "$(dirname "$0")"
if [ -e .env ]; then
  echo "$PWD/.env is there already: left as it is" >&2
  exit 0
fi
umask 077
while IFS= read -r line; do
  case $line in
    [A-Z]*=) printf '%s%s\n' "$line" "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;;
    *) printf '%s\n' "$line" ;;
  esac
done <.env.example >.env.new
mv .env.new .env
echo "made $PWD/.env" >&2
