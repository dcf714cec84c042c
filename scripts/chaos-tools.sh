#!/bin/sh
# Installs, from Debian, what `npm run test:chaos` needs beside Node: strace (kills and faults at chosen system calls, order of
# writes), iproute2 (network namespaces), faketime (jumps of the clock), chromium (a real browser), util-linux (prlimit, unshare).
# Without this script, a row whose program is missing says that it did not run, and the others run.
set -eu
packages='strace iproute2 faketime chromium util-linux'
echo "Installing from Debian: $packages"
apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages
for program in strace ip faketime chromium prlimit unshare; do
  command -v "$program" > /dev/null || { echo "$program is still missing" >&2; exit 1; }
done
echo 'Every row of the chaos suite can run now.'
