#!/bin/bash
# Makes systemd process 1, for a job about a service; the job itself is a service.  The end of guest_init.sh.
#
# It is Debian's systemd with the kernel's control groups, but none of Debian's services starts: the targets that
# every service waits for are empty, and there are no generators and no journal.  Output of services is lost unless
# they redirect it.

cp "${0%/*}/guest_job.sh" /run/guest_job.sh # a path that needs no quoting in a unit
units=/run/systemd/system
mkdir -p $units
for target in sysinit basic; do
    printf '[Unit]\nDescription=nothing\n' >$units/$target.target
    for wants in {/usr/lib,/etc}/systemd/system/$target.target.wants; do
        [ -d "$wants" ] && mount -t tmpfs tmpfs "$wants"
    done
done
mount -t tmpfs tmpfs /usr/lib/systemd/system-generators
echo 0123456789abcdef0123456789abcdef >/etc/machine-id # without one it would assume a first boot
# A port can be opened only once: no process has it open when the service starts.
cat >$units/e2e.service <<UNIT
[Unit]
DefaultDependencies=no
[Service]
Environment=PATH=$PATH HOME=$HOME LANG=$LANG TERM=$TERM
ExecStart=/bin/bash /run/guest_job.sh
StandardOutput=file:${output:?}
StandardError=inherit
UNIT
exec >/dev/null 2>&1
exec /lib/systemd/systemd --unit=e2e.service
