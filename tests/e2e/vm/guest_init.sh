#!/bin/bash
# Process 1 of the guest after initramfs.sh: sets up the system, and runs the job through guest_job.sh, directly or
# under systemd.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=linux
JOB=/run/e2e

exec </dev/null
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts

# The job's output goes through a virtio port: ISA serial ports share interrupts and stall each other.
shopt -s nullglob # an interactive machine has no port and uses the serial line
for port in /sys/class/virtio-ports/*; do
    [ "$(<"$port/name")" = e2e.output ] && output=/dev/${port##*/} && exec >"$output" 2>&1
done

# Each start of Python takes seconds here.  The finder of an editable install and setuptools' additions are half a
# second of it: a line with the path does the same.  And the first start reads every file from the host: do that
# while the modules load.
packages=$(<$JOB/packages)
for pth in "$packages"/__editable__.usbipd_ext-*.pth; do
    cp $JOB/pth "$pth"
done
rm -f "$packages/distutils-precedence.pth"
roles='import usbipd.extension.process, usbipd.server.process, usbipd.worker.process'
"$(<$JOB/python)" -I -c "$roles" >/dev/null 2>&1 &

mapfile -t modules <"/lib/modules/$(uname -r)/modules.e2e"
modprobe -a "${modules[@]}"
mount -t configfs configfs /sys/kernel/config

# The system user of the server and the workers.  Lines, not useradd: if an ordinary user shares the host's files,
# /etc/shadow is unreadable.  Debian never assigns ids of this range dynamically.
grep -q '^usbipd:' /etc/group || echo 'usbipd:x:64240:' >>/etc/group
grep -q '^usbipd:' /etc/passwd || echo 'usbipd:x:64240:64240:usbipd:/nonexistent:/usr/sbin/nologin' >>/etc/passwd

# A daemon on the host may have bindings and a configuration.  The root is an overlay: the host's files stay.
rm -rf /var/lib/usbipd /etc/usbipd

# Debian's libusb is notified of devices only by udevd: without udevd, hotplug and even a later device list of a
# running process show nothing new.  Rules would cost time and claim the devices: it runs without any.
[ -d /usr/lib/udev/rules.d ] && mount -t tmpfs tmpfs /usr/lib/udev/rules.d
[ -d /etc/udev/rules.d ] && mount -t tmpfs tmpfs /etc/udev/rules.d
/lib/systemd/systemd-udevd --daemon --children-max=2

dmesg -n info # from here on the console shows the drivers' messages
if [ -e $JOB/systemd ]; then
    # shellcheck source=tests/e2e/vm/guest_systemd.sh
    . "${0%/*}/guest_systemd.sh"
fi
# shellcheck source=tests/e2e/vm/guest_job.sh
. "${0%/*}/guest_job.sh"
