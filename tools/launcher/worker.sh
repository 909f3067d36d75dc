#!/bin/bash
# On a worker of a TPU: bash worker.sh setup|start|status|stop|log. Sent there by tools/launch.py, with code.tar, run.sh
# and env, into a folder of the job's own.
set -eu
cd "$(dirname "$0")"

# The number of a process may have been given to another one since.
alive() { test -e pid && grep -qs running.sh "/proc/$(cat pid)/cmdline"; }
worker=$(hostname | sed 's/.*-w-//') # its number

case $1 in
setup) # the code, and a Python for it: images of TPUs have 3.10. Done before, it is not done again.
    if ! alive && ! cmp -s code.tar installed.tar; then
        export PATH="$HOME/.local/bin:$PATH"
        command -v uv > /dev/null || python3 -m pip install --quiet --user uv==0.13.8
        rm -rf code venv && mkdir code
        tar -xf code.tar -C code
        uv venv --quiet --python 3.12 venv
        uv pip install --quiet --python venv/bin/python --constraint code/requirements.lock './code[demo,gcs,tpu]'
        cp code.tar installed.tar
    fi
    ;;
start)
    if ! alive; then
        rm -f ended
        cp run.sh running.sh # bash reads it as it goes, so that it must not change
        setsid nohup bash running.sh >> log 2>&1 < /dev/null &
        echo $! > pid
    fi
    ;;
status) # a line: the worker, and how its process stands
    if test -e ended; then
        echo "worker $worker ended $(cat ended)"
    elif alive; then
        echo "worker $worker running"
    else
        echo "worker $worker gone"
    fi
    ;;
stop) # the process may save; it has a minute for that
    if alive; then
        kill -TERM -- "-$(cat pid)" || true
        for ((i = 0; i < 60; i++)); do
            alive || break
            sleep 1
        done
        kill -KILL -- "-$(cat pid)" 2> /dev/null || true
    fi
    ;;
log)
    exec tail -n +1 -F log
    ;;
*)
    echo "worker.sh: no such verb: $1" >&2
    exit 2
    ;;
esac
