package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/test/images"
)

const bigLayer = 512 << 20

// imgfs measures the program against the kernel.
func (b *bencher) imgfs(program string, many int) error {
	sample, large := filepath.Join(b.dir, "sample"), filepath.Join(b.dir, "large")
	m := &mounter{b: b, program: program, at: filepath.Join(b.dir, "mnt"), cache: filepath.Join(b.dir, "cache")}
	b.undo = append(b.undo, m.umount)
	if err := errors.Join(
		write(sample, func(l *images.Layout) error {
			_, err := l.Add(images.Big(bigLayer), "localhost/big:1")
			return errors.Join(err, images.Sample(l))
		}),
		write(large, func(l *images.Layout) error { return images.Many(l, many) }),
	); err != nil {
		return err
	}
	b.header(fmt.Sprintf("imgfs, %d images", many), "imgfs", "kernel's overlay")
	if err := b.tree(m, large); err != nil {
		return err
	}
	b.header(fmt.Sprintf("imgfs, a layer of %d MiB", bigLayer>>20), "imgfs", "the file system below")
	return b.layer(m, sample)
}

// tree measures lists and small files. The overlay has a copy of the same tree.
func (b *bencher) tree(m *mounter, layout string) error {
	if err := b.alone("mount to first ls ids/", side{m.umount, func() error {
		return errors.Join(m.mount(layout), b.sh("ls %s/ids >/dev/null", m.at)())
	}}); err != nil {
		return err
	}
	if err := m.memory("memory, idle"); err != nil {
		return err
	}
	copied, over := filepath.Join(b.dir, "copied"), filepath.Join(b.dir, "over")
	if err := errors.Join(os.Mkdir(copied, 0o755), b.sh("cp -a %s/ids %s/images %s/", m.at, m.at, copied)(),
		b.overlay(copied, filepath.Join(b.dir, "empty"), over)); err != nil {
		return err
	}
	fresh := func() error { return errors.Join(m.umount(), m.mount(layout)) }
	for _, w := range []struct{ what, line string }{
		{"ls images/", "ls -R %s/images >/dev/null"},
		{"ls -l images/", "ls -lR %s/images >/dev/null"},
		{"find ids/", "find %s/ids >/dev/null"},
		{"find ids/ and stat", "find %s/ids -printf %%s >/dev/null"},
		{"cat manifest.json of all", "cat %s/ids/*/manifest.json >/dev/null"},
		{"find, xargs cat", "find %s/ids -type f -print0 | xargs -0 cat >/dev/null"},
		{"grep -r ids/", "grep -r nosuchtext %s/ids; true"},
		{"ls -lR ids/", "ls -lR %s/ids >/dev/null"},
		{"tar of ids/", "tar cf - %s/ids 2>/dev/null | cat >/dev/null"},
	} {
		ours, theirs := b.sh(w.line, m.at), b.sh(w.line, over)
		if err := errors.Join(
			b.compare(w.what+", first", side{fresh, ours}, side{dropCaches, theirs}),
			b.compare(w.what+", again", side{run: ours}, side{run: theirs}),
		); err != nil {
			return err
		}
	}
	return errors.Join(m.memory("memory, after tar"), m.umount())
}

// layer measures one large diff.tar, whose blob is compressed.
func (b *bencher) layer(m *mounter, layout string) error {
	if err := m.mount(layout); err != nil {
		return err
	}
	dir := filepath.Join(m.at, "images/localhost/big:1/layers/00")
	plain := filepath.Join(b.dir, "plain.tar")
	unpack := b.sh("gzip -dc %s/blob >%s", dir, plain)
	emptyCache := func() error { return errors.Join(m.umount(), os.RemoveAll(m.cache), m.mount(layout)) }
	cat := func(file string) func() error { return b.sh("cat %s | cat >/dev/null", file) }
	diff := filepath.Join(dir, "diff.tar")
	readers := func(file string) func() error {
		var lines []string
		for i := range 8 { // each at another place of the file
			lines = append(lines, fmt.Sprintf("dd if=%s of=/dev/null bs=64k skip=%d status=none &", file, i*bigLayer>>19))
		}
		return b.sh("%s wait", strings.Join(lines, " "))
	}
	fresh := func() error { return errors.Join(m.umount(), m.mount(layout)) }
	return errors.Join(
		b.compare("diff.tar, nothing cached (gzip -dc)", side{emptyCache, cat(diff)}, side{dropCaches, unpack}),
		b.compare("diff.tar after a remount (cat)", side{fresh, cat(diff)}, side{run: cat(plain)}),
		b.compare("diff.tar again (cat)", side{run: cat(diff)}, side{run: cat(plain)}),
		b.compare("diff.tar, eight readers (dd), after a remount", side{fresh, readers(diff)}, side{run: readers(plain)}),
		m.memory("memory, after that"),
		m.umount(),
	)
}

func write(dir string, add func(*images.Layout) error) error {
	l, err := images.Create(dir)
	if err != nil {
		return err
	}
	return errors.Join(add(l), l.Close())
}

// A mounter is the program with one mount.
type mounter struct {
	b                  *bencher
	program, at, cache string
	mounted            bool
}

func (m *mounter) mount(layout string) error {
	if err := m.b.command(m.program, "mount", "--cache-dir", m.cache, layout, m.at); err != nil {
		return err
	}
	m.mounted = true
	return nil
}

func (m *mounter) umount() error {
	if !m.mounted {
		return nil
	}
	m.mounted = false
	err := m.b.command(m.program, "umount", m.at)
	if err != nil {
		_ = unix.Unmount(m.at, unix.MNT_DETACH)
	}
	return err
}

// memory prints how much of the machine's memory the serving process has.
func (m *mounter) memory(what string) error {
	statuses, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return err
	}
	for _, path := range statuses {
		command, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		exe, _ := os.Readlink(filepath.Join(filepath.Dir(path), "exe"))
		if exe != m.program || !strings.Contains(string(command), m.at) {
			continue
		}
		status, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(status)) {
			if size, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				fmt.Printf("| %s | %s | | | |\n", what, strings.TrimSpace(size))
			}
		}
		return nil
	}
	return fmt.Errorf("no process serves %s", m.at)
}
