#!/usr/bin/env bash
# A run on any machine you reach by SSH: up, started so that a lost connection does not matter, watched, fetched.
# Start:    RECIPE=qwen3-4b-instruct-qlora-24gb MAX_HOURS=8 MAX_COST=6 PRICE=0.69 \
#             bash recipes/cloud/ssh.sh USER@HOST [--then 'sudo shutdown -h now']
# Forget:   the run ends at its limits, the machine does not unless --then ends it. Many providers charge for a machine
#           that is shut down until it is deleted in their console.
# Checked:  shellcheck; a whole run with ssh and rsync replaced by a local shell (tests/test_cloud_runs.py).
#           Not run against a rented machine.
#
# The same line again watches a run that goes on, fetches one that has ended, and goes on with one that was fetched, on
# another machine, too: what lies in RESULTS is then sent up.
# Ctrl-C stops watching, not the run. To stop that: ssh USER@HOST 'kill -TERM -- -$(cat ssd-lite-cloud/RECIPE/pid)'
# --then comes once at the end of the run, however it ends, when the results are fetched or 30 minutes later.
#
#   SSH               the ssh to use, such as 'ssh -p 2222 -i key'           default ssh
#   RESULTS           where the run comes to on this machine                 default runs/RECIPE
#   SSD_LITE_PACKAGE  what to install (start.sh); default: the checkout that this file is in
#   SETTINGS HF_TOKEN as in start.sh; the token travels in a file that only you can read
set -euo pipefail

HOST=${1:?is wanted: user@host}
THEN=''
case $#/${2:-} in
    1/) ;;
    2/--then | 3/--then) THEN=${3:?is wanted after --then: a command} ;;
    *) echo "ssh.sh: ${*:2} is not known; usage: ssh.sh user@host [--then 'COMMAND']" >&2 && exit 2 ;;
esac
: "${RECIPE:?is wanted: a recipe (ssd-lite recipes)}" "${PRICE:?is wanted: the price of an hour}"
: "${MAX_HOURS:?is wanted: after how many hours to stop}" "${MAX_COST:?is wanted: after how much money to stop}"
: "${SSH:=ssh}" "${POLL_SECONDS:=30}" "${GRACE_SECONDS:=1800}"
for number in "$MAX_HOURS" "$MAX_COST" "$PRICE"; do
    LC_ALL=C awk -v n="$number" 'BEGIN { exit !(n ~ /^[0-9]*\.?[0-9]+$/ && n + 0 > 0) }' ||
        { echo "ssh.sh: $number is no number above 0" >&2 && exit 2; }
done
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NAME=$(basename "$RECIPE" .yaml)
FOLDER=ssd-lite-cloud/$NAME  # below the home folder over there
: "${RESULTS:=runs/$NAME}"

say() { echo "ssh.sh: $*" >&2; }
remote() { $SSH "$HOST" "$@"; }
copy() { rsync --archive --compress --rsh="$SSH" "$@"; }

send() {
    local root setting
    root=$(dirname "$(dirname "$HERE")")
    remote "mkdir -p '$FOLDER/source' && chmod 700 '$FOLDER' && command -v rsync >/dev/null" || {
        say "$HOST cannot be reached, or has no rsync (Debian, Ubuntu: apt-get install rsync)"
        exit 1
    }
    copy "$HERE/start.sh" "$HOST:$FOLDER/"
    if [ -z "${SSD_LITE_PACKAGE:-}" ] && [ -d "$root/ssd_lite" ]; then
        copy --exclude=__pycache__ "$root/ssd_lite" "$root/recipes" "$root/pyproject.toml" "$root/README.md" \
            "$root/LICENSE" "$HOST:$FOLDER/source/"
        SSD_LITE_PACKAGE='./source[unsloth,gguf,data]'  # without ./ it would be a name on PyPI
    fi
    if [ -f "$RECIPE" ]; then
        copy "$RECIPE" "$HOST:$FOLDER/$NAME.yaml"
        RECIPE=$NAME.yaml
    fi
    if [ -e "$RESULTS/recipe.yaml" ] && ! remote "test -e '$FOLDER/run/recipe.yaml'" </dev/null; then
        say "going on with the run in $RESULTS"
        copy --exclude=cloud-log.txt "$RESULTS/" "$HOST:$FOLDER/run/"
    fi
    # Once the run has ended: wait until the results are fetched, not for ever, then the command. In the background, so
    # that the run can say that it has ended.
    if [ -n "$THEN" ]; then
        THEN="(cd ~/'$FOLDER' && for _ in \$(seq $GRACE_SECONDS); do [ -e fetched ] && break; sleep 1; done; $THEN) \
            >>~/'$FOLDER/then.txt' 2>&1 </dev/null &"
    fi
    {
        echo 'export RUN_DIR=run'
        for setting in RECIPE MAX_HOURS MAX_COST PRICE THEN SETTINGS SSD_LITE_PACKAGE HF_TOKEN; do
            if [ -n "${!setting:-}" ]; then printf 'export %s=%q\n' "$setting" "${!setting}"; fi
        done
    } | remote "umask 077 && cat >'$FOLDER/settings'"
}

# setsid and nohup: no terminal over there whose end could end the run. The trap keeps the outer shell, which writes
# down the exit code, when a stop is sent to the whole group.
start() {
    remote "cd '$FOLDER' && rm -f fetched exit_code pid && {
        nohup setsid bash -c 'trap : TERM; echo \$\$ >pid; . ./settings; rm settings
            bash start.sh; echo \$? >code; mv code exit_code' >log.txt 2>&1 </dev/null &
        until [ -s pid ]; do sleep 0.1; done; }" </dev/null
}

# What is there: FETCHED, END code, RUN last line of the log, NONE.
look() {
    remote "cd '$FOLDER' 2>/dev/null || { echo NONE; exit 0; }
        if [ -e fetched ]; then echo FETCHED
        elif [ -e exit_code ]; then echo END \$(cat exit_code)
        elif [ -e pid ] && kill -0 \$(cat pid) 2>/dev/null; then
            echo RUN \$(tail -n 1 log.txt) \
                \$(find run/heartbeat.json -mmin +15 -printf '(no heartbeat since %TH:%TM)' 2>/dev/null)
        else echo NONE; fi" </dev/null
}

watch_run() {
    local seen last='' failed=0
    while :; do
        if seen=$(look); then failed=0; else
            failed=$((failed + 1))
            say "no connection; the run goes on without one"
            if [ "$failed" -ge 40 ]; then exit 1; fi
            seen=LOST
        fi
        case $seen in
            END*) CODE=${seen#END }; return ;;
            NONE)
                say "the run is gone without a word: was $HOST started again? The same line goes on with it"
                exit 1
                ;;
        esac
        if [ "$seen" != "$last" ]; then echo "${seen#RUN }"; fi
        last=$seen
        sleep "$POLL_SECONDS"
    done
}

case $(look) in
    RUN*) say "a run goes on there; watching it" ;;
    END*) say "a run has ended there; fetching it" ;;
    *)
        send
        start
        ;;
esac
watch_run
mkdir -p "$RESULTS"
if remote "test -d '$FOLDER/run'" </dev/null; then
    # Checkpoints are of use to a run that goes on, perhaps on another machine; a finished one is better without.
    leave=(--exclude=.lock)
    if remote "test -e '$FOLDER/run/report.html'" </dev/null; then leave+=(--exclude=/checkpoints); fi
    copy "${leave[@]}" "$HOST:$FOLDER/run/" "$RESULTS/"
fi
copy "$HOST:$FOLDER/log.txt" "$RESULTS/cloud-log.txt"
remote "touch '$FOLDER/fetched'" </dev/null
say "the run ended with exit code $CODE; what there is of it lies in $RESULTS"
exit "$CODE"
