package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A peer is one way to look at the same files. mount makes them appear at its directory, with nothing cached that the
// program itself does not keep on the disk.
type peer struct {
	name  string
	at    string // where the files are, once mounted
	mount func() error
	once  bool // measured a single time: it is slow
	gone  bool // it failed, or took longer than patience
}

// overlay is the kernel's own, as podman mounts it.
func (r *rootfsBench) overlay() (*peer, error) {
	out, err := exec.CommandContext(r.ctx, "sh", "-c", "podman "+r.store+" image mount localhost/image:1").Output()
	if err != nil {
		return nil, fmt.Errorf("podman image mount: %w", err)
	}
	at := strings.TrimSpace(string(out))
	r.mounted = append(r.mounted, at)
	return &peer{name: "overlay", at: at, mount: func() error { return nil }}, nil
}

func (r *rootfsBench) imgfsPeers() []*peer {
	mount := func(name, source, image string) *peer {
		at := r.path("mnt-" + strings.ReplaceAll(name, " ", "-"))
		return &peer{name: "imgfs, " + name, at: filepath.Join(at, "images", image, "rootfs"), mount: func() error {
			if err := r.unmount(at); err != nil {
				return err
			}
			r.mounted = append(r.mounted, at)
			return r.command(r.program, "mount", "--cache-dir", r.path("cache"), source, at)
		}}
	}
	return []*peer{mount("store", r.source, "localhost/image:1"), mount("gzip layout", r.path("gzip"), "image")}
}

// otherPeers are the FUSE file systems that can show the tree at from, or the layers of the store if from is its overlay.
// Those that are not installed are left out, by name.
func (r *rootfsBench) otherPeers(from, tag string) []*peer {
	var all []*peer
	add := func(name string, once bool, prepare string, mount func(at string) []string) {
		if _, err := exec.LookPath(name); err != nil {
			fmt.Printf("%s is not installed: left out\n", name)
			return
		}
		if prepare != "" {
			if err := r.command("sh", "-c", prepare); err != nil {
				fmt.Printf("%s cannot be prepared: %v\n", name, err)
				return
			}
		}
		at := r.path("mnt-" + name + tag)
		all = append(all, &peer{name: name, at: at, once: once, mount: func() error {
			if err := r.unmount(at); err != nil {
				return err
			}
			if err := os.MkdirAll(at, 0o755); err != nil {
				return err
			}
			r.mounted = append(r.mounted, at)
			args := mount(at)
			return r.command(args[0], args[1:]...)
		}})
	}
	lower := from
	if tag == "" {
		diffs, err := filepath.Glob(filepath.Join(r.path("root"), "overlay", "*", "diff"))
		if err == nil && len(diffs) > 0 {
			lower = strings.Join(diffs, ":")
		}
	}
	add("fuse-overlayfs", false, "", func(at string) []string {
		return []string{"fuse-overlayfs", "-o", "lowerdir=" + lower, at}
	})
	squash := r.path("tree" + tag + ".squashfs")
	add("squashfuse", false, "mksquashfs "+from+" "+squash+" -quiet -no-progress >/dev/null", func(at string) []string {
		return []string{"squashfuse", squash, at}
	})
	plain := r.path("tree" + tag + ".tar")
	add("archivemount", true, "tar cf "+plain+" -C "+from+" .", func(at string) []string {
		return []string{"archivemount", "-o", "readonly", plain, at}
	})
	return all
}

func (r *rootfsBench) unmount(at string) error {
	for i, m := range r.mounted {
		if m != at {
			continue
		}
		r.mounted = append(r.mounted[:i], r.mounted[i+1:]...)
		if err := r.command(r.program, "umount", at); err == nil {
			return nil
		}
		if err := unix.Unmount(at, 0); err != nil {
			return unix.Unmount(at, unix.MNT_DETACH)
		}
	}
	return nil
}

func (r *rootfsBench) unmountAll() error {
	var errs []error
	for len(r.mounted) > 0 {
		at := r.mounted[len(r.mounted)-1]
		if strings.HasPrefix(at, r.path("root")) {
			r.mounted = r.mounted[:len(r.mounted)-1]
			errs = append(errs, exec.Command("sh", "-c", "podman "+r.store+" image unmount --all --force").Run(), r.detachBelow(r.path("root")))
			continue
		}
		errs = append(errs, r.unmount(at))
	}
	return errors.Join(errs...)
}

// detachBelow takes away what the store has mounted for itself.
func (r *rootfsBench) detachBelow(dir string) error {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir) {
			if err := unix.Unmount(fields[1], unix.MNT_DETACH); err != nil {
				return err
			}
		}
	}
	return nil
}
