#!/bin/bash
# Runs the job, prints its status, powers off.  Part of process 1, see guest_init.sh, or a systemd service, see
# guest_systemd.sh.
JOB=/run/e2e

if [ -e $JOB/interactive ]; then
    setsid -c bash $JOB/command </dev/ttyS0 >/dev/ttyS0 2>&1
else
    setsid bash $JOB/command
fi
echo "e2e: exit status $?" # not into a file: a job may have lost the host's files, see guest/sleep.py
echo o >/proc/sysrq-trigger
sleep 60 # until the power is off; process 1 must not exit
