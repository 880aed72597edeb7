#!/bin/sh
# An agent session of Warren, which puts this file here; changes to it do not last.
if ! command -v node >/dev/null 2>&1; then
    printf '%s\n' '{"type":"error","message":"agent sessions need Node.js 18 or later, and there is no node in this sandbox; use an image that has it, such as node:22"}'
    exit 1
fi
exec node --no-warnings @FOLDER@/main.mjs "$@"
