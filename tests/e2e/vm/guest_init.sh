#!/bin/bash
# Process 1 of the guest after initramfs.sh: makes the system ready, and has guest_job.sh run the job, itself or by
# systemd.
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

# What the job prints goes through a virtio port: ISA serial ports share interrupts and stall each other.
shopt -s nullglob # an interactive machine has no port, it talks on the serial line
for port in /sys/class/virtio-ports/*; do
    [ "$(<"$port/name")" = e2e.output ] && output=/dev/${port##*/} && exec >"$output" 2>&1
done

# Each start of Python costs seconds here.  The finder of an editable install and what setuptools adds are half a
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

# The system user that the server and the workers become.  Lines, not useradd: a host that is shared by an ordinary
# user does not let us read /etc/shadow.  Debian never gives numbers of this range to a package's users by itself.
grep -q '^usbipd:' /etc/group || echo 'usbipd:x:64240:' >>/etc/group
grep -q '^usbipd:' /etc/passwd || echo 'usbipd:x:64240:64240:usbipd:/nonexistent:/usr/sbin/nologin' >>/etc/passwd

# A daemon of the host may have bindings and a configuration. The root is an overlay: the host keeps them.
rm -rf /var/lib/usbipd /etc/usbipd

# Debian's libusb learns of devices only from what udevd sends on: without udevd, hotplug and even a later device
# list of a running process show nothing new.  Rules would cost time and take the devices: it runs without any.
[ -d /usr/lib/udev/rules.d ] && mount -t tmpfs tmpfs /usr/lib/udev/rules.d
[ -d /etc/udev/rules.d ] && mount -t tmpfs tmpfs /etc/udev/rules.d
/lib/systemd/systemd-udevd --daemon --children-max=2

dmesg -n info # from here on the console shows what the drivers say
if [ -e $JOB/systemd ]; then
    # shellcheck source=tests/e2e/vm/guest_systemd.sh
    . "${0%/*}/guest_systemd.sh"
fi
# shellcheck source=tests/e2e/vm/guest_job.sh
. "${0%/*}/guest_job.sh"
