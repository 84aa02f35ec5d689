# Handles the launchd job and a separate daemon, for preinstall, postinstall and usbipd-uninstall, which source this file.
# shellcheck shell=sh

LABEL=org.usbipd.extension
# launchctl's output is for people: only its exit codes count.

job_is_loaded() {
    launchctl print "system/$LABEL" >/dev/null 2>&1
}

# end_job: stops the daemon, which releases every device, and waits until launchd has removed the job.
# `launchctl bootout` returns before that, and a bootstrap that comes too early fails.  launchd kills the daemon
# after 30 s (ExitTimeOut); end_job fails if the job still exists after 45 s.
end_job() {
    job_is_loaded || return 0
    launchctl bootout "system/$LABEL" || true # the loop below checks the result
    tries=0
    while job_is_loaded; do
        tries=$((tries + 1))
        if [ "$tries" -gt 45 ]; then
            echo "usbipd: the launchd job $LABEL does not stop; restart this Mac and try again" >&2
            return 1
        fi
        sleep 1
    done
}

# check_no_daemon EXECUTABLE: fails if a daemon runs outside the job, such as `sudo usbipd-ext --run` in a terminal.
# Call it after the job has stopped.  EXECUTABLE is the installed usbipd-ext; it need not exist.
check_no_daemon() {
    if "$1" --status >/dev/null 2>&1; then
        echo "usbipd: a daemon is running that launchd did not start, such as \`sudo usbipd-ext --run\`.  It would lose" \
            "its executable and its control socket while it holds devices.  Stop it and try again;" \
            "\`usbipd-ext --status\` shows its pid." >&2
        return 1
    fi
}
