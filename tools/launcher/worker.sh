#!/bin/bash
# Runs on a TPU worker: bash worker.sh setup|start|status|stop|log. The launcher copies it into the job's folder, with
# code.tar, run.sh and env.
set -eu
cd "$(dirname "$0")"

# Another process may have reused the number in pid.
alive() { test -e pid && grep -qs running.sh "/proc/$(cat pid)/cmdline"; }
worker=$(hostname | sed 's/.*-w-//') # number of the worker

case $1 in
setup) # install the code and Python 3.12 (TPU images have 3.10), unless done before
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
        cp run.sh running.sh # bash reads a script while running it, so it must not change
        setsid nohup bash running.sh >> log 2>&1 < /dev/null &
        echo $! > pid
    fi
    ;;
status) # print one line: the worker and the state of its process
    if test -e ended; then
        echo "worker $worker ended $(cat ended)"
    elif alive; then
        echo "worker $worker running"
    else
        echo "worker $worker gone"
    fi
    ;;
stop) # give the process a minute to save
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
    echo "worker.sh: unknown verb: $1" >&2
    exit 2
    ;;
esac
