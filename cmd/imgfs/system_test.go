package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/test/needs"
)

// inNamespace runs a shell script in a mount namespace of its own, where it may change /dev.
func inNamespace(t *testing.T, dir, script string) (string, error) {
	t.Helper()
	needs.Programs(t, "unshare")
	cmd := exec.Command("unshare", "--mount", "sh", "-euc", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "IMGFS="+program(t), "CACHE="+cacheDir(t), "XDG_RUNTIME_DIR="+dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestCommandWithoutDevice(t *testing.T) {
	dir := workDir(t)
	out, err := inNamespace(t, dir, `
		mount -t tmpfs none /dev
		mknod /dev/null c 1 3
		code=0; $IMGFS mount --cache-dir $CACHE layout m || code=$?
		test $code = 5
		test ! -e m`)
	if err != nil || !strings.HasPrefix(out, "imgfs: mounting on m: FUSE is not available") || !strings.Contains(out, "modprobe fuse") ||
		!strings.Contains(out, "--device /dev/fuse") || strings.Count(out, "\n") != 1 {
		t.Errorf("%v: %q", err, out)
	}
}

// In a container without the capability, and without fusermount3.
func TestCommandWithoutCapability(t *testing.T) {
	dir := workDir(t)
	needs.Programs(t, "setpriv")
	out, err := inNamespace(t, dir, `
		code=0
		PATH=/nowhere /usr/bin/setpriv --bounding-set -sys_admin --inh-caps -sys_admin $IMGFS mount --cache-dir $CACHE layout m || code=$?
		test $code = 5
		test ! -e m`)
	if err != nil || !strings.Contains(out, "FUSE is not available") || !strings.Contains(out, "--cap-add SYS_ADMIN") || strings.Count(out, "\n") != 1 {
		t.Errorf("%v: %q", err, out)
	}
}

// An ordinary user mounts through fusermount3.
func TestCommandOrdinaryUser(t *testing.T) {
	dir := workDir(t)
	needs.Programs(t, "setpriv")
	needs.Programs(t, "fusermount3")
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := inNamespace(t, dir, `
		mknod -m 0666 device c 10 229
		mount --bind device /dev/fuse
		mkdir -m 0755 home; chown 65534 home
		cat >script <<-'END'
			set -eu
			$IMGFS mount --cache-dir home/cache layout home/m
			ls home/m/ids | wc -l
			grep home/m /proc/mounts | cut -d' ' -f1,3,4 | cut -d, -f1-3
			$IMGFS list | tail -1 | cut -d' ' -f1
			! $IMGFS mount --cache-dir home/cache layout empty
			! $IMGFS mount --cache-dir home/cache -o suid layout home/n
			! $IMGFS mount --cache-dir home/cache -o allow_other layout home/n
			cd home/m
			! $IMGFS umount .
			cd ..
			$IMGFS umount m
			ls -A .
			cd ..
			$IMGFS mount --cache-dir home/cache layout home/m
			kill -9 $($IMGFS list | tail -1 | awk '{print $NF}')
			$IMGFS mount --cache-dir home/cache layout home/m
			ls home/m/ids | wc -l
			$IMGFS umount home/m
			ls -A home
		END
		export XDG_RUNTIME_DIR=$PWD/home
		setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all sh script
		umount /dev/fuse`)
	got := strings.Split(strings.TrimSpace(out), "\n")
	want := []string{
		"1",
		"oci:" + dir + "/layout fuse.imgfs rw,nosuid,nodev",
		dir + "/home/m",
		"imgfs: mounting on empty: no permission for the mountpoint: permission denied",
		"imgfs: option suid: only root may ask for it: denied; see `imgfs mount --help`",
		"imgfs: mounting on home/n: fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf: denied",
		"imgfs: unmounting .: busy: in use by ",
		"cache", "imgfs",
		"1",
		"cache", "imgfs",
	}
	if err != nil || len(got) != len(want) {
		t.Fatalf("%v:\n%s", err, out)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("line %d: %q, want %q", i+1, got[i], want[i])
		}
	}
}
