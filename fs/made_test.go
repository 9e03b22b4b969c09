package fs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

// A tagged is a tree whose names can be changed, as a store's.
type tagged struct {
	*FS
	t     *testing.T
	src   *fakeSource
	ops   *fakeOps
	all   []*fakeImage
	names map[string]string // name -> id
}

func newTagged(t *testing.T, images ...*fakeImage) *tagged {
	t.Helper()
	f, src, ops := newTree(t)
	f.mountpoint = "/mnt"
	g := &tagged{FS: f, t: t, src: src, ops: ops, all: images, names: map[string]string{}}
	for i, img := range images {
		g.names[fmt.Sprintf("localhost/%c:1", 'a'+i)] = img.desc.ID
	}
	ops.do = func(_ context.Context, w Write) error {
		switch w.Control {
		case "remove":
			g.all = slices.DeleteFunc(g.all, func(i *fakeImage) bool { return i.desc.ID == w.Image })
			maps.DeleteFunc(g.names, func(_, id string) bool { return id == w.Image })
		case "link":
			for _, line := range w.Lines {
				name := line[0][1:]
				if line[0][0] == '+' {
					g.names[name] = w.Image
				} else if g.names[name] == w.Image {
					delete(g.names, name)
				}
			}
		}
		g.list()
		return nil
	}
	g.list()
	f.refresh(t.Context())
	return g
}

func (g *tagged) list() {
	var all []imgsrc.Listed
	for _, img := range g.all {
		var names []string
		for name, id := range g.names {
			if id == img.desc.ID {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		all = append(all, named(img, names...))
	}
	g.src.set(all...)
}

// at returns the node of a path.
func (g *tagged) at(path string) node {
	g.t.Helper()
	n := rootNode
	if path == "" {
		return n
	}
	for elem := range strings.SplitSeq(path, "/") {
		hit, err := g.view(n).lookup(g.t.Context(), n, elem)
		if err != nil {
			g.t.Fatalf("%s: %v", path, err)
		}
		n = hit.node
	}
	return n
}

// readlink returns what a link says, or the error of looking for it.
func (g *tagged) readlink(path string) string {
	dir, name := cutLast(path)
	n := g.at(dir)
	hit, err := g.view(n).lookup(g.t.Context(), n, name)
	if err != nil {
		return err.Error()
	}
	target, err := g.view(hit.node).readlink(g.t.Context(), hit.node)
	if err != nil {
		return err.Error()
	}
	return string(target)
}

func cutLast(path string) (dir, name string) {
	i := max(strings.LastIndexByte(path, '/'), 0)
	return path[:i], strings.TrimPrefix(path[i:], "/")
}

func (g *tagged) ln(target, path string) fuse.Status {
	dir, name := cutLast(path)
	out := &fuse.EntryOut{}
	s := g.Symlink(nil, &fuse.InHeader{NodeId: uint64(g.at(dir))}, target, name, out)
	if s != fuse.OK {
		return s
	}
	if out.Mode&syscall.S_IFMT != syscall.S_IFLNK || out.NodeId == 0 {
		g.t.Errorf("ln %s: the answer is %+v", path, out)
	}
	if target, err := g.view(node(out.NodeId)).readlink(g.t.Context(), node(out.NodeId)); err != nil || out.Size != uint64(len(target)) {
		g.t.Errorf("ln %s: answered with a link to %q, %v, of %d bytes", path, target, err, out.Size)
	}
	return s
}

func (g *tagged) mv(from, to string, flags uint32) fuse.Status {
	fromDir, fromName := cutLast(from)
	toDir, toName := cutLast(to)
	in := &fuse.RenameIn{Flags: flags, Newdir: uint64(g.at(toDir))}
	in.NodeId = uint64(g.at(fromDir))
	return g.Rename(nil, in, fromName, toName)
}

func (g *tagged) mkdir(path string) fuse.Status {
	dir, name := cutLast(path)
	in := &fuse.MkdirIn{}
	in.NodeId = uint64(g.at(dir))
	return g.Mkdir(nil, in, name, &fuse.EntryOut{})
}

func (g *tagged) rm(path string) fuse.Status {
	dir, name := cutLast(path)
	return g.Unlink(nil, &fuse.InHeader{NodeId: uint64(g.at(dir))}, name)
}

func (g *tagged) rmdir(path string) fuse.Status {
	dir, name := cutLast(path)
	return g.Rmdir(nil, &fuse.InHeader{NodeId: uint64(g.at(dir))}, name)
}

func TestNamesAreMadeAndMoved(t *testing.T) {
	a, b := makeImage(t, "a"), makeImage(t, "b")
	g := newTagged(t, a, b)
	toA, toB := "../../ids/"+a.desc.ID, "../../ids/"+b.desc.ID
	exists, notEmpty := fuse.Status(syscall.EEXIST), fuse.Status(syscall.ENOTEMPTY)
	for _, step := range []struct {
		what string
		do   func() fuse.Status
		want fuse.Status
		path string // what it is about then leads to
		says string
	}{
		{"ln", func() fuse.Status { return g.ln(toA, "images/localhost/web:1") }, fuse.OK, "images/localhost/web:1", toA},
		{"ln again", func() fuse.Status { return g.ln(toA, "images/localhost/web:1") }, exists, "images/localhost/web:1", toA},
		{"ln of a short name", func() fuse.Status { return g.ln("../ids/"+a.desc.ID, "images/short") }, fuse.OK, "images/localhost/short:latest", toA},
		{"ln of a short name that is there", func() fuse.Status { return g.ln("../ids/"+b.desc.ID, "images/short:latest") }, exists, "images/localhost/short:latest", toA},
		{"ln -f: a temporary name", func() fuse.Status { return g.ln(toB, "images/localhost/CuAbc12x") }, fuse.OK, "images/localhost/CuAbc12x", toB},
		{"ln -f: renamed", func() fuse.Status { return g.mv("images/localhost/CuAbc12x", "images/localhost/web:1", 0) }, fuse.OK, "images/localhost/web:1", toB},
		{"its temporary name", func() fuse.Status { return fuse.OK }, fuse.OK, "images/localhost/CuAbc12x", syscall.ENOENT.Error()},
		{"mistyped", func() fuse.Status { return g.ln(toA, "images/localhost/Web:1") }, fuse.EINVAL, "images/localhost/web:1", toB},
		{"by digest", func() fuse.Status { return g.ln(toA, "images/localhost/web@sha256:12") }, fuse.EINVAL, "images/localhost/web:1", toB},
		{"an id", func() fuse.Status { return g.ln(toA, "images/localhost/"+a.desc.ID) }, fuse.EINVAL, "images/localhost/web:1", toB},
		{"into nowhere", func() fuse.Status { return g.ln("nothing:1", "images/localhost/new:1") }, fuse.ENOENT, "images/localhost/web:1", toB},
		{"mkdir", func() fuse.Status { return g.mkdir("images/localhost/team") }, fuse.OK, "images/localhost/web:1", toB},
		{"mkdir again", func() fuse.Status { return g.mkdir("images/localhost/team") }, exists, "images/localhost/web:1", toB},
		{"mkdir of no name's", func() fuse.Status { return g.mkdir("images/localhost/Team") }, fuse.EINVAL, "images/localhost/web:1", toB},
		{"mkdir in ids/", func() fuse.Status { return g.mkdir("ids/x") }, fuse.EROFS, "images/localhost/web:1", toB},
		{"ln there", func() fuse.Status { return g.ln("../b:1", "images/localhost/team/x:1") }, fuse.OK, "images/localhost/team/x:1", "../" + toB},
		{"rmdir of what is not empty", func() fuse.Status { return g.rmdir("images/localhost/team") }, notEmpty, "images/localhost/team/x:1", "../" + toB},
		{"mv to another depth", func() fuse.Status { return g.mv("images/localhost/team/x:1", "images/localhost/x:1", 0) }, fuse.OK, "images/localhost/x:1", toB},
		{"rmdir", func() fuse.Status { return g.rmdir("images/localhost/team") }, fuse.OK, "images/localhost/x:1", toB},
		{"mv -n onto a name", func() fuse.Status { return g.mv("images/localhost/x:1", "images/localhost/a:1", 1) }, exists, "images/localhost/a:1", toA},
		{"mv --exchange", func() fuse.Status { return g.mv("images/localhost/x:1", "images/localhost/a:1", 2) }, fuse.EINVAL, "images/localhost/a:1", toA},
		{"mv onto a name", func() fuse.Status { return g.mv("images/localhost/x:1", "images/localhost/a:1", 0) }, fuse.OK, "images/localhost/a:1", toB},
		{"mv of a short name", func() fuse.Status { return g.mv("images/short", "images/other", 0) }, fuse.OK, "images/localhost/other:latest", toA},
		{"mv to a name that is none", func() fuse.Status { return g.mv("images/localhost/a:1", "images/localhost/.hidden", 0) }, fuse.EINVAL, "images/localhost/a:1", toB},
		{"mv of a directory", func() fuse.Status { return g.mv("images/localhost", "images/else", 0) }, fuse.EPERM, "images/localhost/a:1", toB},
		{"mv into ids/", func() fuse.Status { return g.mv("images/localhost/a:1", "ids/a", 0) }, fuse.EROFS, "images/localhost/a:1", toB},
		{"mv of nothing", func() fuse.Status { return g.mv("images/localhost/nothing:1", "images/localhost/n:1", 0) }, fuse.ENOENT, "images/localhost/a:1", toB},
		{"rm", func() fuse.Status { return g.rm("images/localhost/a:1") }, fuse.EPERM, "images/localhost/a:1", toB},
		{"rmdir of an image", func() fuse.Status { return g.rmdir("ids/" + a.desc.ID) }, fuse.EPERM, "images/localhost/a:1", toB},
		{"a temporary name again", func() fuse.Status { return g.ln(toB, "images/localhost/.tmp") }, fuse.OK, "images/localhost/.tmp", toB},
		{"rm of that", func() fuse.Status { return g.rm("images/localhost/.tmp") }, fuse.OK, "images/localhost/.tmp", syscall.ENOENT.Error()},
		{"rmdir of images/", func() fuse.Status { return g.rmdir("images") }, fuse.EROFS, "images/localhost/a:1", toB},
	} {
		if got := step.do(); got != step.want {
			t.Errorf("%s: %v, want %v", step.what, got, step.want)
		}
		if got := g.readlink(step.path); got != step.says {
			t.Errorf("%s: %s says %s, want %s", step.what, step.path, got, step.says)
		}
	}
	want := map[string]string{"localhost/web:1": b.desc.ID, "localhost/b:1": b.desc.ID, "localhost/a:1": b.desc.ID, "localhost/other:latest": a.desc.ID}
	if !maps.Equal(g.names, want) {
		t.Errorf("names %v, want %v", g.names, want)
	}
	all := map[string]file{}
	walk(t, g.FS, g.at("images"), "", all)
	for path := range all {
		if name := strings.TrimPrefix(path, "/"); name != "localhost" && want[name] == "" {
			t.Errorf("%s is listed", path)
		}
	}
	g.allowRemove = true
	if s := g.rm("images/localhost/a:1"); s != fuse.OK || g.names["localhost/a:1"] != "" {
		t.Errorf("rm: %v, names %v", s, g.names)
	}
	if s := g.rm("images/other"); s != fuse.OK || g.names["localhost/other:latest"] != "" {
		t.Errorf("rm of a short name: %v, names %v", s, g.names)
	}
	if s := g.rmdir("ids/" + a.desc.ID); s != fuse.OK || len(g.all) != 1 {
		t.Errorf("rmdir: %v", s)
	}
	if s := g.rmdir("ids/" + a.desc.ID); s != fuse.ENOENT {
		t.Errorf("rmdir again: %v", s)
	}
	if s := g.rm("ids/" + b.desc.ID + "/manifest.json"); s != fuse.EROFS {
		t.Errorf("rm in an image: %v", s)
	}
}

func TestOthersMakeNoNames(t *testing.T) {
	a := makeImage(t, "a")
	g := newTagged(t, a)
	g.allowRemove = true
	dir := uint64(g.at("images/localhost"))
	header := func(dir uint64, uid uint32) fuse.InHeader {
		return fuse.InHeader{NodeId: dir, Caller: fuse.Caller{Owner: fuse.Owner{Uid: uid}}}
	}
	for _, test := range []struct {
		uid      uint32
		readOnly bool
		want     fuse.Status
	}{{7, false, fuse.EACCES}, {0, true, fuse.EROFS}} {
		g.readOnly = test.readOnly
		h, ids := header(dir, test.uid), header(uint64(idsNode), test.uid)
		for what, got := range map[string]fuse.Status{
			"ln":    g.Symlink(nil, &h, "a:1", "b:1", &fuse.EntryOut{}),
			"mkdir": g.Mkdir(nil, &fuse.MkdirIn{InHeader: h}, "d", &fuse.EntryOut{}),
			"mv":    g.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: dir}, "a:1", "b:1"),
			"rm":    g.Unlink(nil, &h, "a:1"),
			"rmdir": g.Rmdir(nil, &ids, a.desc.ID),
		} {
			if got != test.want {
				t.Errorf("%s: %v, want %v", what, got, test.want)
			}
		}
	}
	if len(g.ops.writes) > 0 {
		t.Errorf("carried out: %+v", g.ops.writes)
	}
}

// The kernel has the node of the old name under the new one for a moment: it must say what the new one does. The old name,
// made again, must be another node meanwhile.
func TestMovedLinks(t *testing.T) {
	g := newTagged(t, makeImage(t, "a"))
	if s := g.mkdir("images/localhost/team"); s != fuse.OK {
		t.Fatal(s)
	}
	first := g.at("images/localhost/a:1")
	says := func(n node) string {
		target, err := g.view(n).readlink(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		return string(target)
	}
	short, long := says(first), "../"+says(first)
	for _, step := range []struct{ from, to, says string }{
		{"images/localhost/a:1", "images/localhost/team/a:1", long},
		{"images/localhost/team/a:1", "images/localhost/a:1", short},
		{"images/localhost/a:1", "images/localhost/team/b:1", long},
		{"images/localhost/team/b:1", "images/localhost/c:1", short},
	} {
		if s := g.mv(step.from, step.to, 0); s != fuse.OK {
			t.Fatal(s)
		}
		if got := says(first); got != step.says {
			t.Errorf("after %s -> %s the node says %s", step.from, step.to, got)
		}
	}
	if s := g.ln("c:1", "images/localhost/a:1"); s != fuse.OK {
		t.Fatal(s)
	}
	if g.at("images/localhost/a:1") == first {
		t.Error("the old name is the node that the kernel has under the new one")
	}
	for _, l := range g.spaces[spaceImages].moves.to {
		g.arrived(l)
	}
	if got := says(first); got != short {
		t.Errorf("to who has looked it up before it says %s", got)
	}
	if n := len(g.spaces[spaceImages].moves.to); n > 0 {
		t.Errorf("%d links are not told of", n)
	}
}

func TestMadeIsBounded(t *testing.T) {
	g := newTagged(t, makeImage(t, "a"))
	g.spaces[spaceImages].made.Dirs = map[string]bool{}
	for i := range maxMade {
		g.spaces[spaceImages].made.Dirs[fmt.Sprint("d", i)] = true
	}
	if s := g.mkdir("images/localhost/one"); s != fuse.Status(syscall.ENOSPC) {
		t.Errorf("one more: %v", s)
	}
}

// A store that somebody has locked holds nobody up for long: who lists the directory waits for the link that is being made.
func TestLinkGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTagged(t, makeImage(t, "a"))
		g.ops.do = func(ctx context.Context, _ Write) error {
			<-ctx.Done()
			return ctx.Err()
		}
		h := &fuse.InHeader{NodeId: uint64(g.at("images/localhost"))}
		for _, test := range []struct {
			interrupted time.Duration
			want        fuse.Status
			after       time.Duration
		}{{time.Second, fuse.EINTR, time.Second + patience}, {time.Hour, fuse.Status(syscall.ETIMEDOUT), lockTime}} {
			cancel := make(chan struct{})
			timer := time.AfterFunc(test.interrupted, func() { close(cancel) })
			began := time.Now()
			if got := g.Symlink(cancel, h, "a:1", "b:1", &fuse.EntryOut{}); got != test.want || time.Since(began) != test.after {
				t.Errorf("%v after %v, want %v after %v", got, time.Since(began), test.want, test.after)
			}
			timer.Stop()
		}
	})
}

func TestEmptiedDirectoriesLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := makeImage(t, "a")
		g := newTagged(t, a)
		g.allowRemove = true
		for _, name := range []string{"quay.io/x/y:1", "quay.io/z:1"} {
			g.names[name] = a.desc.ID
		}
		g.list()
		g.refresh(t.Context())
		if s := g.rm("images/quay.io/x/y:1"); s != fuse.OK {
			t.Fatal(s)
		}
		if s := g.rmdir("images/quay.io/x"); s != fuse.OK {
			t.Errorf("rmdir of what rm has emptied: %v", s)
		}
		if s := g.rm("images/quay.io/z:1"); s != fuse.OK {
			t.Fatal(s)
		}
		time.Sleep(lingerTime + time.Second)
		synctest.Wait()
		if says := g.readlink("images/quay.io"); says != syscall.ENOENT.Error() {
			t.Errorf("the directory is still there: %s", says)
		}

		// One that mkdir makes in its place stays.
		g.names["quay.io/z:1"] = g.all[0].desc.ID
		g.list()
		for _, s := range []fuse.Status{g.rm("images/quay.io/z:1"), g.rmdir("images/quay.io"), g.mkdir("images/quay.io")} {
			if s != fuse.OK {
				t.Fatal(s)
			}
		}
		time.Sleep(lingerTime + time.Second)
		synctest.Wait()
		if says := g.readlink("images/quay.io"); says != syscall.EINVAL.Error() {
			t.Errorf("what mkdir has made is gone: %s", says)
		}
	})
}

// The kernel lets nobody make anything in a directory that rmdir has removed, as long as somebody stands in it: the one that is
// made there next is another node.
func TestDirectoryMadeAgain(t *testing.T) {
	g := newTagged(t, makeImage(t, "a"))
	dir := "images/localhost/team"
	seen := map[node]bool{}
	for range 3 {
		if s := g.mkdir(dir); s != fuse.OK {
			t.Fatal(s)
		}
		n := g.at(dir)
		if seen[n] {
			t.Errorf("node %x again", uint64(n))
		}
		seen[n] = true
		walk(t, g.FS, imagesNode, "", map[string]file{})
		if s := g.rmdir(dir); s != fuse.OK {
			t.Fatal(s)
		}
		if _, err := g.view(n).attr(t.Context(), n, false); errnoOf(err) != syscall.ENOENT {
			t.Errorf("the directory that was removed: %v", err)
		}
	}
	if s := g.mkdir(dir); s != fuse.OK {
		t.Fatal(s)
	}
	if s := g.ln("../a:1", dir+"/x:1"); s != fuse.OK || g.names["localhost/team/x:1"] == "" {
		t.Errorf("ln there: %v, names %v", s, g.names)
	}
}
