package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/test/images"
)

// lates are how long the registry thinks before it answers.
var lates = []time.Duration{0, 40 * time.Millisecond}

// A lazyShape is a layer, and one small file in it.
type lazyShape struct {
	what    string
	entries func() []images.Entry
	file    string
}

const (
	lazyDirs, lazyFiles = 100, 50
	lazySmall           = 13_000
	lazyLarge, lazyMany = 8 << 20, 16
)

var lazyShapes = []lazyShape{
	{"small files, in order", smallFiles, "d42/f17"},
	{"small files, out of order", shuffled, "d42/f17"},
	{"large files", largeFiles, "small"},
}

// smallFiles are 5,000 files in 100 directories, in the order of their names.
func smallFiles() []images.Entry {
	r := rand.New(rand.NewPCG(1, 2))
	var entries []images.Entry
	for d := range lazyDirs {
		entries = append(entries, images.Dir(fmt.Sprintf("d%02d", d)))
		for f := range lazyFiles {
			entries = append(entries, images.File(fmt.Sprintf("d%02d/f%02d", d, f), halfNoise(r, lazySmall/2+r.IntN(lazySmall))))
		}
	}
	return entries
}

func shuffled() []images.Entry {
	entries := smallFiles()
	rand.New(rand.NewPCG(3, 4)).Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	return entries
}

func largeFiles() []images.Entry {
	r := rand.New(rand.NewPCG(5, 6))
	var entries []images.Entry
	for f := range lazyMany {
		entries = append(entries, images.File(fmt.Sprintf("large%02d", f), halfNoise(r, lazyLarge)))
	}
	return append(entries, images.File("small", halfNoise(r, lazySmall)))
}

// halfNoise is n bytes that compress to a little more than half.
func halfNoise(r *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		if i%64 < 32 {
			b[i] = byte(r.Uint32())
		}
	}
	return string(b)
}

// lazy measures layers with a table of contents in a registry against the same layers as plain gzip, which come whole.
func (b *bencher) lazy(program string) error {
	dir := filepath.Join(b.dir, "registry")
	names := map[string]v1.Descriptor{}
	if err := write(dir, func(l *images.Layout) error { return lazyImages(l, names) }); err != nil {
		return err
	}
	reg := newSlowRegistry(dir, names)
	defer reg.Close()
	z := &lazyBench{bencher: b, reg: reg, m: &mounter{b: b, program: program, at: filepath.Join(b.dir, "mnt"), cache: filepath.Join(b.dir, "cache")}}
	z.source = filepath.Join(b.dir, "empty-layout")
	if err := write(z.source, func(*images.Layout) error { return nil }); err != nil {
		return err
	}
	b.undo = append(b.undo, z.m.umount)
	if err := z.bytes(); err != nil {
		return err
	}
	for _, late := range lates {
		reg.late = late
		b.header(fmt.Sprintf("layers of a registry that answers after %d ms", late.Milliseconds()), "by table of contents", "gzip, whole")
		for _, shape := range lazyShapes {
			if err := z.times(shape); err != nil {
				return err
			}
		}
	}
	return z.m.umount()
}

// lazyForms are how the same files are compressed; the last one has no table of contents.
var lazyForms = []struct {
	name string
	how  images.Compression
}{{"estargz", images.EStargz}, {"chunked", images.ZstdChunked}, {"gzip", images.Gzip}}

func lazyImages(l *images.Layout, names map[string]v1.Descriptor) error {
	for i, shape := range lazyShapes {
		entries := shape.entries()
		for _, form := range lazyForms {
			d, err := l.Write(images.Image{Compression: form.how, Layers: []images.Layer{{CreatedBy: shape.what, Entries: entries}}})
			if err != nil {
				return err
			}
			names[fmt.Sprintf("%s:%d", form.name, i)] = d
		}
	}
	return nil
}

type lazyBench struct {
	*bencher
	reg    *slowRegistry
	m      *mounter
	source string // for the mount: what is measured is asked for by name
}

func (z *lazyBench) image(form string, shape lazyShape) string {
	i := slices.IndexFunc(lazyShapes, func(s lazyShape) bool { return s.what == shape.what })
	return filepath.Join(z.m.at, "registry", z.reg.host(), fmt.Sprintf("%s:%d", form, i))
}

// fresh mounts with an empty cache, and looks at what an image is: manifest and config, no layer.
func (z *lazyBench) fresh(image string) func() error {
	return func() error {
		err := errors.Join(z.m.umount(), os.RemoveAll(z.m.cache), z.m.mount(z.source), z.sh("cat %s/config.json >/dev/null", image)())
		z.reg.count()
		return err
	}
}

// bytes prints how much of a layer moves.
func (z *lazyBench) bytes() error {
	fmt.Print("\nWhat moves of a layer, in one mount with an empty cache, one behind the other\n\n| | MiB | ls -lR rootfs | and one small file | and tar of all | requests |\n|---|---|---|---|---|---|\n")
	for _, shape := range lazyShapes {
		for _, form := range lazyForms {
			image := z.image(form.name, shape)
			if err := z.fresh(image)(); err != nil {
				return err
			}
			var moved, requests, size int64
			text, err := os.ReadFile(image + "/layers/00/size")
			if err == nil {
				_, err = fmt.Sscan(string(text), &size)
			}
			if err != nil {
				return err
			}
			fmt.Printf("| %s, %s | %d |", shape.what, form.name, size>>20)
			for _, line := range []string{"ls -lR %s/rootfs/ >/dev/null", "cat %s/rootfs/" + shape.file + " >/dev/null", "tar cf - %s/rootfs/ 2>/dev/null | cat >/dev/null"} {
				if err := z.sh(line, image)(); err != nil {
					return err
				}
				n, asked := z.reg.count()
				moved, requests = moved+n, requests+asked
				fmt.Printf(" %s |", percent(moved, size))
			}
			fmt.Printf(" %d |\n", requests)
		}
	}
	return nil
}

// times compares with the layer that comes whole.
func (z *lazyBench) times(shape lazyShape) error {
	whole := z.image("gzip", shape)
	for _, form := range lazyForms[:2] {
		image := z.image(form.name, shape)
		for _, w := range []struct{ what, line string }{
			{"first byte of a file", "head -c 1 %s/rootfs/" + shape.file + " >/dev/null"},
			{"tar of all", "tar cf - %s/rootfs/ 2>/dev/null | cat >/dev/null"},
		} {
			if err := z.compare(fmt.Sprintf("%s, %s: %s", shape.what, form.name, w.what),
				side{z.fresh(image), z.sh(w.line, image)}, side{z.fresh(whole), z.sh(w.line, whole)}); err != nil {
				return err
			}
		}
	}
	return nil
}
