#!/usr/bin/env bash
# On the rented machine: install ssd-lite once, take the run back, run it within its limits, keep it safe meanwhile.
# Start:    RECIPE=quickstart MAX_HOURS=1 MAX_COST=1 PRICE=0.50 bash start.sh    (`bash start.sh install` only installs)
# Forget:   the run ends at its limits, but this script ends no machine: the file that rented it does.
# Checked:  shellcheck; whole, stopped and resumed runs on a CPU (tests/test_cloud_runs.py).
#
#   RECIPE MAX_HOURS MAX_COST PRICE   wanted: what, for how many hours, for how much money, at which price an hour;
#                     the limits hold for the whole run, however many machines it comes to
#   RUN_DIR           the run folder, on a local disk         default ~/ssd-lite-runs/RECIPE
#   KEEP              a folder that outlives the machine (bucket, volume); empty where RUN_DIR itself does
#   KEEP_SECONDS      how often the run is written to KEEP    default 600
#   SETTINGS          words a.b=c, each one a --set           default none
#   THEN              a command for --then; it finds the run in $SSD_LITE_RUN      default none
#   SSD_LITE_PACKAGE  wanted where ssd-lite is not there yet: './folder[unsloth,gguf,data]', a wheel, or
#                     'ssd-lite[unsloth,gguf,data] @ git+https://...'. No default: it is not on PyPI, and a name there
#                     would be somebody else's, with your tokens in its reach
set -euo pipefail

: "${SSD_LITE_PACKAGE:=}" "${SSD_LITE_ENV:=$HOME/ssd-lite-env}"
PATH="$SSD_LITE_ENV/bin:$HOME/.local/bin:$PATH"

say() { echo "start.sh: $*" >&2; }

# THEN, told what `ssd-lite run` tells it, where there was no such run.
then_after() {
    if [ -n "${THEN:-}" ]; then SSD_LITE_EXIT_CODE=$1 SSD_LITE_RUN=${RUN_DIR:-} bash -c "$THEN" || true; fi
}

install_once() {
    if command -v ssd-lite >/dev/null; then return; fi
    if [ -z "$SSD_LITE_PACKAGE" ]; then
        say "no ssd-lite here: SSD_LITE_PACKAGE says what to install, such as 'ssd-lite[...] @ git+https://...'"
        return 2
    fi
    say "installing $SSD_LITE_PACKAGE"
    if ! command -v uv >/dev/null; then curl -LsSf https://astral.sh/uv/install.sh | sh || return; fi
    uv venv --quiet --allow-existing --python 3.12 "$SSD_LITE_ENV" &&
        uv pip install --quiet --python "$SSD_LITE_ENV/bin/python" "$SSD_LITE_PACKAGE" || return
    if ! command -v ssd-lite >/dev/null; then
        say "$SSD_LITE_PACKAGE brought no ssd-lite (a folder is written ./folder)"
        return 1
    fi
}

# Wait for a background process, do $2 about each second meanwhile, return its exit code. bash 5.2 can lose that code
# (`wait` says -1) where a trapped signal cuts a `wait` short while a child ends, as when a signal goes to the whole
# group: seen in most of 40 tries. So nothing waits but a `read` from a pipe that stays empty, which a signal cuts short
# as well.
exec 9<> <(:)
exit_code_of() {
    while kill -0 "$1" 2>/dev/null; do
        read -r -t 1 -u 9 || true
        ${2:-true}
    done
    wait "$1"
}

# A bucket's mount takes whole new files well; files that stay open, grow or are locked it takes badly. So the run lies
# on a local disk, and KEEP gets archives, each written once. The newest that has its last entry counts: tar alone takes
# an archive that was cut between two blocks for a whole one.
archives() { find "$KEEP" -maxdepth 1 -name "$NAME.*.tar" | sort; }

take_back() {
    local archive
    if [ -z "$KEEP" ] || [ -e "$RUN_DIR/recipe.yaml" ]; then return; fi
    while read -r archive; do
        if [ "$(tar -tf "$archive" 2>/dev/null | tail -n 1)" = ./.last-entry ]; then
            say "the run goes on from $archive"
            tar -xf "$archive" -C "$RUN_DIR" --exclude=./.last-entry
            return
        fi
        say "$archive is not whole: trying the one before"
    done < <(archives | sort -r)
}

# The manifest is read first: an archive may hold more than its manifest says, never less. A journal cut in its last
# line and a folder half deleted are mended by the run itself, so tar's exit 1 (a file changed or went) is no failure.
archive_run() {
    local code=0 old ends archive
    if [ -z "$KEEP" ] || [ ! -e "$RUN_DIR/manifest.json" ]; then return; fi
    ends=$(mktemp -d)
    cp "$RUN_DIR/manifest.json" "$ends/"
    touch "$ends/.last-entry"
    SERIAL=$((SERIAL + 1))
    # In the background, so that a stop signal is passed on at once.
    archive=$KEEP/$NAME.$STARTED-$(printf %04d "$SERIAL").tar
    tar -cf "$archive" \
        -C "$ends" ./manifest.json -C "$RUN_DIR" --exclude=./manifest.json --exclude=./.lock "$@" . \
        -C "$ends" ./.last-entry &
    exit_code_of $! || code=$?
    rm -f "$ends/manifest.json" "$ends/.last-entry"
    rmdir "$ends"
    if [ "$code" -gt 1 ]; then
        say "no archive could be written to $KEEP (tar: $code)"
        rm -f "$archive"
        return
    fi
    archives | head -n -2 | while read -r old; do rm -f "$old"; done
}

# Merged weights and GGUF files are large and soon made again: only the archive of a run that ended has them. On the way
# there is no need, and after a notice there is no time.
archive_small() { archive_run --exclude=./merged --exclude=./gguf; }

# shellcheck disable=SC2329  # exit_code_of calls it
archive_now_and_then() {
    if [ "$SECONDS" -lt "$NEXT" ]; then return; fi
    archive_small
    NEXT=$((SECONDS + KEEP_SECONDS))
}

# shellcheck disable=SC2329  # a trap calls it
stop_asked() {
    STOP_ASKED=1
    say "asked to stop: the run saves its work"
    if [ -n "$RUN" ]; then kill -TERM "$RUN" 2>/dev/null || true; fi
}

# What is left of a limit, in its unit, at $2 an hour. `ssd-lite run` counts its own time alone; the heartbeat knows of
# earlier starts, on other machines, too.
left_of() {
    local seconds
    seconds=$(sed -n 's/.*"run_seconds": *\([0-9.]*\).*/\1/p' "$RUN_DIR/heartbeat.json" 2>/dev/null || true)
    LC_ALL=C awk -v limit="$1" -v rate="$2" -v seconds="${seconds:-0}" \
        'BEGIN { left = limit - rate * seconds / 3600; printf "%.6f", (left > 0 ? left : 0) }'
}

run_within_limits() {
    local hours cost setting settings code=0
    hours=$(left_of "$MAX_HOURS" 1) cost=$(left_of "$MAX_COST" "$PRICE")
    if [ "$hours" = 0.000000 ] || [ "$cost" = 0.000000 ]; then
        then_after 75
        return 75
    fi
    local arguments=("$RECIPE" --out "$RUN_DIR" --max-hours "$hours" --max-cost "$cost" --price "$PRICE")
    read -ra settings <<<"${SETTINGS:-}"
    for setting in "${settings[@]}"; do arguments+=(--set "$setting"); done
    if [ -n "${THEN:-}" ]; then arguments+=(--then "$THEN"); fi
    ssd-lite run "${arguments[@]}" &
    RUN=$!
    if [ -n "$STOP_ASKED" ]; then kill -TERM "$RUN"; fi  # the signal came just before there was a run
    NEXT=$((SECONDS + KEEP_SECONDS))
    exit_code_of "$RUN" archive_now_and_then || code=$?
    if [ -n "$STOP_ASKED" ]; then archive_small; else archive_run; fi
    if [ -n "$KEEP" ] && [ -e "$RUN_DIR/report.html" ]; then cp "$RUN_DIR/report.html" "$KEEP/$NAME.html"; fi
    return "$code"
}

# What comes before the run. Called before `||`, where `set -e` does not hold.
prepare() {
    local code=0
    install_once || code=$?
    if [ "$code" -ne 0 ]; then
        say "the installation failed"
        return "$code"
    fi
    if [ -n "$STOP_ASKED" ]; then return; fi
    if ! mkdir -p "$RUN_DIR" || ! take_back; then
        say "$RUN_DIR cannot be written, or the archive in $KEEP not read"
        return 1
    fi
}

# All in a function, which bash has read to its end before anything runs: the file may be replaced meanwhile.
main() {
    local code=0 name number
    RUN='' STOP_ASKED='' SERIAL=0 STARTED=$(date -u +%Y%m%dT%H%M%S)
    if [ "${1:-}" = install ]; then
        install_once
        exit
    fi
    for name in RECIPE MAX_HOURS MAX_COST PRICE; do
        if [ -z "${!name:-}" ]; then
            say "$name is wanted: a recipe, how many hours and how much money at most, and the price of an hour"
            then_after 2
            exit 2
        fi
    done
    if [ "${RECIPE#-}" != "$RECIPE" ]; then
        say "$RECIPE is an option, RECIPE is wanted: a recipe (ssd-lite recipes)"
        then_after 2
        exit 2
    fi
    NAME=$(basename "$RECIPE" .yaml)
    : "${RUN_DIR:=$HOME/ssd-lite-runs/$NAME}" "${KEEP:=}" "${KEEP_SECONDS:=600}"
    for number in "$MAX_HOURS" "$MAX_COST" "$PRICE" "$KEEP_SECONDS"; do
        if ! LC_ALL=C awk -v n="$number" 'BEGIN { exit !(n ~ /^[0-9]*\.?[0-9]+$/ && n + 0 > 0) }'; then
            say "$number is no number above 0"
            then_after 2
            exit 2
        fi
    done
    KEEP_SECONDS=${KEEP_SECONDS%%.*}
    : "${KEEP_SECONDS:=1}"
    trap stop_asked TERM INT HUP
    prepare || code=$?
    if [ -n "$STOP_ASKED" ]; then code=75; fi
    if [ "$code" -ne 0 ]; then
        then_after "$code"
        exit "$code"
    fi
    run_within_limits || code=$?
    # 75 says that the same command goes on. After a stop from outside (a spot notice) that is for the provider to do,
    # even where the signal came too early to be heard (143). After a limit it would only cost more money: the planned end
    # of a run that is not finished is no failure.
    if [ "$code" -eq 143 ] && [ -n "$STOP_ASKED" ]; then code=75; fi
    if [ "$code" -eq 75 ] && [ -z "$STOP_ASKED" ]; then
        say "a limit is reached, the work is saved: raise MAX_HOURS or MAX_COST and start again to go on"
        code=0
    fi
    exit "$code"
}

main "$@"
