# The launchd job and a daemon beside it, for preinstall, postinstall and usbipd-uninstall, which read this file.
# shellcheck shell=sh

LABEL=org.usbipd.extension
# What launchctl prints is for people: only its exit codes count.

job_is_loaded() {
    launchctl print "system/$LABEL" >/dev/null 2>&1
}

# end_job: ends the daemon, which releases every device, and waits until launchd has removed the job.
# `launchctl bootout` returns before that, and a bootstrap that comes too early fails.  launchd kills after 30 s
# (ExitTimeOut); fails when the job is there after 45.
end_job() {
    job_is_loaded || return 0
    launchctl bootout "system/$LABEL" || true # whether it worked is seen below
    tries=0
    while job_is_loaded; do
        tries=$((tries + 1))
        if [ "$tries" -gt 45 ]; then
            echo "usbipd: the launchd job $LABEL does not end; restart this Mac and try again" >&2
            return 1
        fi
        sleep 1
    done
}

# check_no_daemon EXECUTABLE: fails if a daemon runs that is not the job's, such as `sudo usbipd-ext --run` in a
# terminal.  To be called when the job has ended.  EXECUTABLE is usbipd-ext of the installation; it need not exist.
check_no_daemon() {
    if "$1" --status >/dev/null 2>&1; then
        echo "usbipd: a daemon runs that launchd has not started, such as \`sudo usbipd-ext --run\`.  It would lose its" \
            "executable and its control socket while it holds devices.  End it and try again;" \
            "\`usbipd-ext --status\` shows its pid." >&2
        return 1
    fi
}
