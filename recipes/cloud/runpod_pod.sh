#!/usr/bin/env bash
# In the pod: run start.sh, then remove this pod, whatever happened. runpod.py sends both.
# Start:    bash -c "$(cat runpod_pod.sh)" runpod_pod.sh "$(cat start.sh)"
# Forget:   RunPod's own timers (--stop-after, --terminate-after) never worked (runpodctl pull requests 330 and 331). A
#           stopped pod still costs its disk, so it is removed. What is not on the network volume is then gone.
# Checked:  shellcheck; runs that end, fail and are stopped, against a stand-in of the API (tests/test_cloud_runs.py).
#           Not run on the provider (no account): that the pod's own key may remove the pod is RunPod's documentation.
#
#   RUNPOD_POD_ID RUNPOD_API_KEY   RunPod sets them; the key is good for this pod alone
#   RUNPOD_REMOVE_KEY              another key that may remove pods, tried first; best a RunPod secret
#   MAX_HOURS GRACE_SECONDS        this long after MAX_HOURS the pod goes even if the run hangs; default 3600
set -uo pipefail  # no -e: nothing may keep it from the removal

: "${RUNPOD_API:=https://rest.runpod.io/v1}" "${GRACE_SECONDS:=3600}" "${MAX_HOURS:=24}"
: "${REMOVE_PAUSE:=15}" "${REMOVE_TRIES:=0}"
RUN='' STOP_AT=0

say() { echo "runpod_pod.sh: $*" >&2; }

# The key goes in by stdin: a process's arguments are for all to see.
# shellcheck disable=SC2329  # a trap calls it
delete_by_api() {
    if [ -z "$1" ]; then return 1; fi
    printf 'header = "Authorization: Bearer %s"\n' "$1" |
        curl --silent --show-error --fail --max-time 30 --output /dev/null --request DELETE --config - \
            "$RUNPOD_API/pods/$RUNPOD_POD_ID"
}

# shellcheck disable=SC2329  # a trap calls it
delete_once() {
    delete_by_api "${RUNPOD_REMOVE_KEY:-}" || delete_by_api "${RUNPOD_API_KEY:-}" ||
        runpodctl remove pod "$RUNPOD_POD_ID"
}

# Without an end, unless REMOVE_TRIES is set: were this script to give up, RunPod would start the container again.
# shellcheck disable=SC2329  # a trap calls it
remove_pod() {
    local tries=0
    trap '' TERM INT HUP
    until delete_once; do
        tries=$((tries + 1))
        say "the pod $RUNPOD_POD_ID is not removed and costs money; trying again in $REMOVE_PAUSE s"
        if [ "$tries" -eq "$REMOVE_TRIES" ]; then return; fi
        sleep "$REMOVE_PAUSE"
    done
    say "the pod $RUNPOD_POD_ID is removed"
    sleep "$REMOVE_PAUSE"
}

# Pass a stop on, and do not wait for long: RunPod gives a spot pod seconds.
# shellcheck disable=SC2329  # a trap calls it
stop_run() {
    if [ "$STOP_AT" -eq 0 ]; then STOP_AT=$((SECONDS + 120)); fi
    if [ -n "$RUN" ]; then kill -TERM "$RUN" 2>/dev/null; fi
}

: "${RUNPOD_POD_ID:?is wanted: this is for a pod}"
trap remove_pod EXIT
trap stop_run TERM INT HUP
last=$(awk -v hours="$MAX_HOURS" -v grace="$GRACE_SECONDS" 'BEGIN { printf "%d", hours * 3600 + grace }')
bash -c "$1" start.sh &
RUN=$!
exec 9<> <(:)
while kill -0 "$RUN" 2>/dev/null; do
    read -r -t 1 -u 9  # an interruptible sleep; start.sh says why it is not `wait`
    if [ "$SECONDS" -ge "$last" ]; then
        say "the run is over its time"
        stop_run
        last=$((SECONDS + 3600))
    fi
    if [ "$STOP_AT" -gt 0 ] && [ "$SECONDS" -ge "$STOP_AT" ]; then kill -KILL "$RUN"; fi
done
wait "$RUN"
code=$?
say "the run ended with exit code $code"
exit "$code"
