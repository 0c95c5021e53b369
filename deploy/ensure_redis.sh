#!/bin/sh
# A redis-server for the tests, where it can be had without asking anybody. Says nothing unless it gets one; at
# most two minutes. Without it the tests that need one are left out, and pytest says so in its last line.
command -v redis-server >/dev/null 2>&1 && exit 0
[ "$(uname -s)" = Linux ] || [ "$(uname -s)" = Darwin ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null && as_root="sudo -n"
    [ -n "$as_root" ] || command -v brew >/dev/null 2>&1 || exit 0
fi

install() {
    if command -v brew >/dev/null 2>&1; then
        HOMEBREW_NO_AUTO_UPDATE=1 brew install redis
    elif command -v apt-get >/dev/null 2>&1; then
        # The server must not be started as a service: the tests start their own.
        export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
        $as_root apt-get install -y -q --no-install-recommends redis-server ||
            { $as_root apt-get update -q && $as_root apt-get install -y -q --no-install-recommends redis-server; }
    elif command -v dnf >/dev/null 2>&1; then
        $as_root dnf install -y -q redis || $as_root dnf install -y -q valkey-compat-redis
    elif command -v apk >/dev/null 2>&1; then
        $as_root apk add -q redis
    fi
}

install </dev/null >/dev/null 2>&1 &
installer=$!
( sleep 120; kill "$installer" 2>/dev/null ) >/dev/null 2>&1 &
watch=$!
wait "$installer" 2>/dev/null
kill "$watch" 2>/dev/null
command -v redis-server >/dev/null 2>&1 && echo "installed $(redis-server --version | cut -c1-24) for the tests"
exit 0
