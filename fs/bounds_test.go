package fs

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A mount lives for months beside programs that change its sources all the time: nothing may grow by what has been.

func TestLedger(t *testing.T) {
	var l ledger[int]
	held := map[uint32]int{}
	rnd := rand.New(rand.NewPCG(3, 4))
	ever := map[uint32]bool{}
	for i := range 20_000 {
		n := l.add(i)
		if n == 0 || ever[n] {
			t.Fatalf("number %d for thing %d", n, i)
		}
		ever[n], held[n] = true, i
		if len(held) > 100 {
			for n := range held {
				if rnd.IntN(2) == 0 {
					l.drop(n)
					l.drop(n)
					delete(held, n)
				}
			}
		}
	}
	if l.len != len(held) {
		t.Errorf("%d things, want %d", l.len, len(held))
	}
	before := uint32(0)
	for n, thing := range l.all() {
		if got, ok := l.get(n); n <= before || !ok || got != thing || held[n] != thing {
			t.Fatalf("%d is %d, %v; want %d", n, got, ok, held[n])
		}
		before = n
		delete(held, n)
	}
	if _, ok := l.get(1 << 23); len(held) > 0 || ok {
		t.Errorf("not yielded: %v", held)
	}
	chunks := 0
	for _, c := range l.chunks {
		if c != nil {
			chunks++
		}
	}
	if chunks > l.len+1 {
		t.Errorf("%d chunks for %d things", chunks, l.len)
	}

	// When all numbers have been given, those that are free are given again.
	l = ledger[int]{last: maxEntry - 1}
	if a, b := l.add(1), l.add(2); a != maxEntry || b != 1 {
		t.Errorf("%d, %d", a, b)
	}
	l.last = maxEntry - 1
	if a := l.add(3); a != 2 {
		t.Errorf("%d, which is in use", a)
	}
}

// What is in use keeps its number, however many others come and go; those that were numbered last do as well.
func TestInternerSweep(t *testing.T) {
	var in interner
	used := map[string]bool{}
	numbers := map[string]uint32{}
	for i := range 20 {
		s := fmt.Sprint("used ", i)
		used[s], numbers[s] = true, in.number(s)
	}
	long := strings.Repeat("x", 200)
	for i := range 100_000 {
		last := fmt.Sprint(long, i)
		n := in.number(last)
		if in.isFull() {
			in.sweep(used)
			if got := in.number(last); got != n {
				t.Fatalf("what was numbered last is %d and was %d", got, n)
			}
		}
	}
	for s, n := range numbers {
		if name, ok := in.name(n); in.number(s) != n || !ok || name != s {
			t.Errorf("%s is %d and was %d: %q", s, in.number(s), n, name)
		}
	}
	if in.bytes > 2*internedSpare || in.names.len > internedSpare/100 || len(in.index) != in.names.len {
		t.Errorf("%d bytes, %d names", in.bytes, in.names.len)
	}
}

// sizesOf is how much of each kind there is.
func sizesOf(f *FS) map[string]int {
	known := map[*ociImage]bool{}
	for _, o := range f.oci.known {
		known[o] = true
	}
	sp := f.spaces[spaceImages]
	f.gone.takeAll() // as the kernel would
	return map[string]int{
		"images": f.slots.images.len, "image chunks": len(f.slots.images.chunks), "order": len(f.state.Load().order), "replaced": len(f.state.Load().replaced),
		"names": sp.index.names.len, "renamed": len(sp.moves.renewed), "removed": len(sp.removed.times), "moved": len(sp.moves.to),
		"targets": f.targets.names.len, "blobs": f.oci.numbers.count(), "files of oci/": len(f.oci.state.Load().files),
		"known to oci/": len(known), "rendered": len(f.rendered.bySlot), "derived": len(f.derived.items), "trees": len(f.trees.items),
		"sizes": len(f.sizes.items), "changed": len(f.state.Load().names[spaceImages].changed),
	}
}

func TestGenerations(t *testing.T) {
	f, src, _ := newTree(t)
	long := strings.Repeat("n", 200)
	stays := makeImage(t, "stays", "base")
	var nodes map[string]node
	at := map[int]map[string]int{}
	for i := range 600 {
		goes := makeImage(t, fmt.Sprint(i), fmt.Sprint("layer ", i), fmt.Sprint("more ", i))
		names := []string{"localhost/moves:1"}
		for n := range 8 {
			names = append(names, fmt.Sprintf("localhost/%s:%d", long, 8*i+n))
		}
		src.set(named(stays, "localhost/dir/stays:1"), named(goes, names...))
		f.refresh(t.Context())
		all := map[string]node{}
		for _, path := range []string{"localhost", "localhost/dir", "localhost/dir/stays:1"} {
			dir, name := cutLast(path)
			parent := imagesNode
			if dir != "" {
				parent = all[dir]
			}
			hit, err := f.view(parent).lookup(t.Context(), parent, name)
			if err != nil {
				t.Fatal(err)
			}
			all[path] = hit.node
		}
		if nodes == nil {
			nodes = all
		}
		for path, n := range all {
			if nodes[path] != n {
				t.Fatalf("%s is another node after %d changes", path, i)
			}
		}
		if err := f.view(all["localhost"]).list(t.Context(), all["localhost"], 0, func(dirent) bool { return true }); err != nil {
			t.Fatal(err)
		}
		textOf(t, f, goes, "live.json")
		if _, err := f.view(idsNode).lookup(t.Context(), idsNode, goes.desc.ID[:12]); err != nil {
			t.Fatal(err)
		}
		if _, err := f.oci.current(t.Context()); err != nil {
			t.Fatal(err)
		}
		at[i] = sizesOf(f)
	}
	for what, n := range at[599] {
		bound := 20
		switch what {
		case "names", "targets":
			bound = internedSpare / 200
		case "blobs":
			bound = spareBlobs + 20
		}
		if n > bound {
			t.Errorf("%s: %d after 600 changes, %d after 100", what, n, at[100][what])
		}
	}
}

// The same where oci/ cannot be made all the time.
func TestGenerationsOfBrokenOCI(t *testing.T) {
	f, src, _ := newTree(t)
	broken := makeImage(t, "broken", "base")
	broken.broken = syscall.EHOSTUNREACH
	for i := range 500 {
		src.set(named(broken), named(makeImage(t, fmt.Sprint(i), fmt.Sprint("layer ", i))))
		f.oci.failed = nil
		if _, err := f.oci.current(t.Context()); errnoOf(err) != syscall.EHOSTUNREACH {
			t.Fatal(err)
		}
		if len(f.oci.known) > 2 || f.oci.numbers.count() > spareBlobs+20 {
			t.Fatalf("%d images, %d blobs after %d changes", len(f.oci.known), f.oci.numbers.count(), i)
		}
	}
}

// ln -sf makes a name up and renames it; mkdir and rmdir make a directory that must be another one the next time.
func TestManyRenames(t *testing.T) {
	a := makeImage(t, "a")
	g := newTagged(t, a)
	sp := g.spaces[spaceImages]
	long := strings.Repeat("l", 200)
	seen := map[node]bool{}
	for i := range 4000 {
		again := i
		if i%10 == 0 {
			again = max(i-10, 0)
		}
		temp := fmt.Sprintf("images/localhost/.%s%d", long, again)
		if s := g.ln("a:1", temp); s != fuse.OK {
			t.Fatalf("ln: %v", s)
		}
		if s := g.mv(temp, "images/localhost/b:1", 0); s != fuse.OK {
			t.Fatalf("mv: %v", s)
		}
		if got := g.readlink("images/localhost/b:1"); got != "../../ids/"+a.desc.ID {
			t.Fatalf("the link says %s", got)
		}
		for _, gone := range g.gone.takeAll() {
			if gone.moved != nil {
				g.arrived(gone.moved)
			}
		}
		clear(sp.moves.left) // a minute later
		dir := fmt.Sprintf("images/localhost/%s%d", strings.Repeat("d", 200), again)
		if s := g.mkdir(dir); s != fuse.OK {
			t.Fatalf("mkdir: %v", s)
		}
		n := g.at(dir)
		if seen[n] {
			t.Fatalf("the directory of round %d is one that was removed", i)
		}
		seen[n] = true
		if s := g.rmdir(dir); s != fuse.OK {
			t.Fatalf("rmdir: %v", s)
		}
	}
	if n := sp.index.names.len; n > internedSpare/200 {
		t.Errorf("%d names are interned", n)
	}
	for what, n := range map[string]int{"renamed links": len(sp.moves.renewed), "removed directories": len(sp.removed.times)} {
		if n > 2600 {
			t.Errorf("%d %s are remembered", n, what)
		}
	}
}

// Whoever may read can look up any number of names.
func TestUnlistedIsBounded(t *testing.T) {
	a := makeImage(t, "a")
	f, _, _ := newTree(t, named(a, "localhost/a:1"))
	listed, err := f.view(imagesNode).lookup(t.Context(), imagesNode, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	sp := f.spaces[spaceImages]
	deep := "a"
	for i := range 3000 {
		name := fmt.Sprintf("localhost/a:1/%s%d", strings.Repeat("x", 2000), i)
		sp.index.number(name)
		f.targets.number(name)
		if _, err := f.view(imagesNode).lookup(t.Context(), imagesNode, deep+":1"); err != nil {
			t.Fatal(err)
		}
		if _, err := f.view(idsNode).lookup(t.Context(), idsNode, a.desc.ID[:10]); err != nil {
			t.Fatal(err)
		}
	}
	for _, in := range []*interner{&sp.index, &f.targets} {
		if in.bytes > 2*internedSpare {
			t.Errorf("%d bytes of names", in.bytes)
		}
	}
	if hit, err := f.view(imagesNode).lookup(t.Context(), imagesNode, "localhost"); err != nil || hit.node != listed.node {
		t.Errorf("a listed directory is %x and was %x, %v", uint64(hit.node), uint64(listed.node), err)
	}
}

// A node of an image that is gone leads nowhere, and nothing that is written to it reaches another image.
func TestGoneImage(t *testing.T) {
	a, b := makeImage(t, "a", "one"), makeImage(t, "b", "two")
	f, src, ops := newTree(t, named(a, "localhost/a:1"), named(b))
	img := f.state.Load().byID[a.desc.ID]
	all := map[string]file{}
	walk(t, f, img.node(viewImage, 0), "", all)
	src.set(named(b))
	f.refresh(t.Context())
	for path, file := range all {
		v := f.view(file.node)
		if v == nil {
			t.Fatalf("%s has no view", path)
		}
		_, attrErr := v.attr(t.Context(), file.node, false)
		_, readErr := v.read(t.Context(), file.node, make([]byte, 1), 0)
		_, linkErr := v.readlink(t.Context(), file.node)
		if errnoOf(attrErr) != syscall.ENOENT || readErr == nil || linkErr == nil {
			t.Errorf("%s: %v, %v, %v", path, attrErr, readErr, linkErr)
		}
	}
	err := f.control.write(t.Context(), all["/tags"].node, fuse.Caller{}, []byte("localhost/x:1\n"), 0)
	if errnoOf(err) != syscall.ENOENT || len(ops.lines()) > 0 {
		t.Errorf("writing to its tags: %v, %q", err, ops.lines())
	}
}
