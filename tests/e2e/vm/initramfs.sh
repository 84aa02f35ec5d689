#!/bin/busybox sh
# shellcheck shell=dash
# /init of the initramfs: assembles the guest's root and switches to it.  Runs in the guest, before its root exists.
#
# The root is an overlay of three: a tmpfs that takes what the guest writes, the host's / (9p, read-only), and the
# layer of packages that prepare.py unpacked (9p, read-only), which is visible only where the host has no such file.
# /run/e2e is the job directory (9p, writable): it contains the job and receives the logs.
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /host /layer /overlay /root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1

fail() {
    echo "e2e: $*"
    poweroff -f
}

share() { # TAG OPTIONS DIRECTORY
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=524288,$2" "$1" "$3" || fail "cannot mount $1 on $3"
}

while read -r module; do
    insmod "/modules/$module" || fail "cannot load $module"
done </modules/order

share host cache=loose,ro /host
share layer cache=loose,ro /layer
mount -t tmpfs -o size=50% tmpfs /overlay
mkdir /overlay/upper /overlay/work
mount -t overlay -o lowerdir=/host:/layer,upperdir=/overlay/upper,workdir=/overlay/work overlay /root ||
    fail "cannot mount the overlay"
mount -t tmpfs tmpfs /root/run
mkdir -p /root/run/e2e /root/run/lock
share job cache=none,rw /root/run/e2e

mkdir -p /root/proc /root/sys /root/dev
mount -o move /proc /root/proc
mount -o move /sys /root/sys
mount -o move /dev /root/dev
ifconfig lo 127.0.0.1 up
exec switch_root /root /bin/bash "$(cat /root/run/e2e/init)"
