package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/test/images"
)

// hostDirs are the directories of this machine whose files make the image, a layer each, and how many bytes of them.
var hostDirs = []struct {
	dir   string
	limit int64
}{{"/usr/lib", 150 << 20}, {"/usr/share", 80 << 20}, {"/usr/bin", 80 << 20}}

const (
	manyFiles = 200000
	// patience is how long a peer may take for one measurement.
	patience = 20 * time.Second
)

// rootfs measures an image's root file system against the kernel's overlay of the same image, and the peers against both.
func (b *bencher) rootfs(program string) error {
	for _, tool := range []string{"podman", "skopeo", "umoci", "rsync"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("needs %s: %w", tool, err)
		}
	}
	set := &rootfsBench{bencher: b, program: program, dir: filepath.Join(b.dir, "rootfs")}
	if err := os.Mkdir(set.dir, 0o755); err != nil {
		return err
	}
	b.undo = append(b.undo, set.unmountAll)
	for _, part := range []func() error{set.image, set.unpacking, set.bigFile, set.memoryOf} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

type rootfsBench struct {
	*bencher
	program, dir string
	store        string // the store's own flags, for podman
	source       string // the store, for imgfs
	mounted      []string
}

func (r *rootfsBench) path(name string) string { return filepath.Join(r.dir, name) }

// image compares on an image of files of this machine.
func (r *rootfsBench) image() error {
	if err := r.makeImage(); err != nil {
		return err
	}
	overlay, err := r.overlay()
	if err != nil {
		return err
	}
	sides := append([]*peer{overlay}, r.imgfsPeers()...)
	sides = append(sides, r.otherPeers(overlay.at, "")...)
	files, err := exec.CommandContext(r.ctx, "sh", "-c", "find "+overlay.at+" -type f | wc -l; du -sm "+overlay.at+" | cut -f1").Output()
	if err != nil {
		return err
	}
	counts := strings.Fields(string(files))
	fmt.Printf("\nThe root file system of an image of %s files and %s MB: medians of %d runs, and the ratio to the kernel's overlay\n\n", counts[0], counts[1], r.runs)
	r.tableHead(sides)
	for _, w := range []struct{ what, line string }{
		{"find, first", "find %s/ >/dev/null"},
		{"find, again", "find %s/ >/dev/null"},
		{"find, xargs cat, first", "find %s/ -type f -print0 | xargs -0 cat >/dev/null"},
		{"find, xargs cat, again", "find %s/ -type f -print0 | xargs -0 cat >/dev/null"},
		{"tar, first", "tar cf - %s/ 2>/dev/null | cat >/dev/null"},
		{"tar, again", "tar cf - %s/ 2>/dev/null | cat >/dev/null"},
		{"grep -r, first", "grep -r nosuchtext %s/; true"},
		{"grep -r, again", "grep -r nosuchtext %s/; true"},
		{"ls -lR, first", "ls -lR %s/ >/dev/null"},
		{"ls -lR, again", "ls -lR %s/ >/dev/null"},
		{"rsync -aHAXn, again", "rsync -aHAXn %s/ " + r.path("nowhere") + "/ >/dev/null"},
	} {
		if err := r.row(w.what, w.line, sides); err != nil {
			return err
		}
	}
	return r.unmountAll()
}

func (r *rootfsBench) makeImage() error {
	var img images.Image
	for _, h := range hostDirs {
		entries, err := images.Tree(strings.TrimPrefix(h.dir, "/"), h.dir, h.limit)
		if err != nil {
			return err
		}
		img.Layers = append(img.Layers, images.Layer{CreatedBy: "COPY " + h.dir, Entries: entries})
	}
	if err := write(r.path("gzip"), func(l *images.Layout) error { _, err := l.Add(img, "image"); return err }); err != nil {
		return err
	}
	img.Compression = images.Zstd
	if err := write(r.path("zstd"), func(l *images.Layout) error { _, err := l.Add(img, "image"); return err }); err != nil {
		return err
	}
	root, run := r.path("root"), r.path("run")
	r.store = "--root " + root + " --runroot " + run + " --storage-driver overlay"
	r.source = "containers-storage:[overlay@" + root + "+" + run + "]"
	return r.command("skopeo", "copy", "-q", "oci:"+r.path("gzip")+":image", r.source+"localhost/image:1")
}

func (r *rootfsBench) tableHead(sides []*peer) {
	fmt.Print("| |")
	for _, p := range sides {
		fmt.Printf(" %s |", p.name)
	}
	fmt.Print("\n|---|" + strings.Repeat("---|", len(sides)) + "\n")
}

// row measures one line of the shell on all sides alternately, and prints medians and their ratio to the first side's.
func (r *rootfsBench) row(what, line string, sides []*peer) error {
	first := strings.HasSuffix(what, "first")
	times := make([][]time.Duration, len(sides))
	for run := range r.runs {
		for i, p := range sides {
			if p.gone || p.once && run > 0 {
				continue
			}
			took, err := r.timePeer(p, fmt.Sprintf(line, p.at), first, run == 0)
			if errors.Is(err, context.DeadlineExceeded) && r.ctx.Err() == nil {
				p.gone = true
				continue
			}
			if err != nil && (i == 0 || strings.HasPrefix(p.name, "imgfs")) || r.ctx.Err() != nil {
				return fmt.Errorf("%s, %s: %w", p.name, what, err)
			}
			if err != nil {
				continue // a peer that cannot do this
			}
			times[i] = append(times[i], took)
		}
	}
	fmt.Printf("| %s |", what)
	base := summary(times[0]).median
	for i := range sides {
		switch {
		case len(times[i]) == 0 && i > 0:
			fmt.Printf(" fails, or over %.0f s |", patience.Seconds())
		case i == 0:
			fmt.Printf(" %.3f s |", base.Seconds())
		default:
			m := summary(times[i]).median
			fmt.Printf(" %.3f s, %.2f |", m.Seconds(), ratio(m, base))
		}
	}
	fmt.Println()
	return nil
}

func (r *rootfsBench) timePeer(p *peer, line string, first, warm bool) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(r.ctx, patience)
	defer cancel()
	sh := func() error {
		cmd := exec.CommandContext(ctx, "sh", "-c", line)
		// The shell's children are what hangs.
		cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
		err := cmd.Run()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	switch {
	case first:
		if err := errors.Join(p.mount(), dropCaches()); err != nil {
			return 0, err
		}
	case warm && !p.once:
		if err := sh(); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	if err := sh(); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

// unpacking compares the first full read of an image whose layers are compressed, with nothing cached, with unpacking it.
func (r *rootfsBench) unpacking() error {
	at := r.path("mnt-fresh")
	mount := func(layout string) func() error {
		return func() error {
			if err := errors.Join(r.unmount(at), os.RemoveAll(r.path("fresh"))); err != nil {
				return err
			}
			r.mounted = append(r.mounted, at)
			return errors.Join(r.command(r.program, "mount", "--cache-dir", r.path("fresh"), r.path(layout), at), dropCaches())
		}
	}
	remount := func() error {
		if err := r.unmount(at); err != nil {
			return err
		}
		r.mounted = append(r.mounted, at)
		return errors.Join(r.command(r.program, "mount", "--cache-dir", r.path("fresh"), r.path("gzip"), at), dropCaches())
	}
	cat := r.sh("find %s/images/image/rootfs/ -type f -print0 | xargs -0 cat >/dev/null", at)
	unpack := side{func() error { return errors.Join(os.RemoveAll(r.path("bundle")), dropCaches()) },
		r.sh("umoci unpack --image %s:image %s", r.path("gzip"), r.path("bundle"))}
	r.header("The first read of all files of a compressed image", "imgfs", "umoci unpack, gzip")
	return errors.Join(
		r.compare("gzip layers, nothing cached", side{mount("gzip"), cat}, unpack),
		r.compare("zstd layers, nothing cached", side{mount("zstd"), cat}, unpack),
		r.compare("gzip layers, after a remount", side{func() error { return errors.Join(mount("gzip")(), cat(), remount()) }, cat}, unpack),
		os.RemoveAll(r.path("bundle")), os.RemoveAll(r.path("fresh")), r.unmountAll(),
	)
}

// bigFile compares one large file with the same on the file system below, cached.
func (r *rootfsBench) bigFile() error {
	if err := write(r.path("big"), func(l *images.Layout) error { _, err := l.Add(images.Big(bigLayer), "big"); return err }); err != nil {
		return err
	}
	at := r.path("mnt-big")
	mount := func() error {
		if err := r.unmount(at); err != nil {
			return err
		}
		r.mounted = append(r.mounted, at)
		return r.command(r.program, "mount", "--cache-dir", r.path("cache"), r.path("big"), at)
	}
	file, plain := filepath.Join(at, "images/big/rootfs/big"), r.path("plain")
	cat := func(name string) func() error { return r.sh("cat %s >/dev/null", name) }
	if err := errors.Join(mount(), r.sh("cat %s >%s", file, plain)(), cat(plain)()); err != nil {
		return err
	}
	r.header(fmt.Sprintf("A file of %d MiB", bigLayer>>20), "imgfs", "ext4, cached")
	return errors.Join(
		r.compare("first", side{mount, cat(file)}, side{run: cat(plain)}),
		r.compare("again", side{run: cat(file)}, side{run: cat(plain)}),
		os.Remove(plain), r.unmountAll(),
	)
}

// memoryOf prints what the processes take that serve a tree of many files.
func (r *rootfsBench) memoryOf() error {
	if err := write(r.path("many"), func(l *images.Layout) error { _, err := l.Add(images.Files(manyFiles), "many"); return err }); err != nil {
		return err
	}
	at := r.path("mnt-many")
	imgfs := &peer{name: "imgfs, gzip layout", at: filepath.Join(at, "images/many/rootfs"), mount: func() error {
		r.mounted = append(r.mounted, at)
		return r.command(r.program, "mount", "--cache-dir", r.path("cache"), r.path("many"), at)
	}}
	if err := errors.Join(imgfs.mount(), r.sh("cp -a %s/ %s", imgfs.at, r.path("tree"))(), r.unmount(at)); err != nil {
		return err
	}
	sides := append([]*peer{imgfs}, r.otherPeers(r.path("tree"), "-many")...)
	fmt.Printf("\nMemory of the serving process (RSS), %d files\n\n| | idle | after find | after reading all files |\n|---|---|---|---|\n", manyFiles)
	for _, p := range sides {
		before := processes()
		if err := p.mount(); err != nil {
			return err
		}
		command := p.name
		if p == imgfs {
			command = filepath.Base(r.program)
		}
		pid := newProcess(before, command)
		fmt.Printf("| %s | %s |", p.name, rss(pid))
		for _, line := range []string{"find %s/ >/dev/null", "find %s/ -type f -print0 | xargs -0 cat >/dev/null"} {
			if _, err := r.timePeer(&peer{at: p.at, once: true}, fmt.Sprintf(line, p.at), false, false); err != nil {
				if r.ctx.Err() != nil {
					return r.ctx.Err()
				}
				fmt.Printf(" over %.0f s |", patience.Seconds())
				continue
			}
			fmt.Printf(" %s |", rss(pid))
		}
		fmt.Println()
		if err := r.unmountAll(); err != nil {
			return err
		}
	}
	return nil
}
