package fs

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestSplitLines(t *testing.T) {
	for _, test := range []struct {
		text string
		want [][]string
		bad  bool
	}{
		{"a\n", [][]string{{"a"}}, false},
		{"a", [][]string{{"a"}}, false},
		{"\n  \n\t\n", nil, false},
		{"# a\n  # b\nc # d\n", [][]string{{"c", "#", "d"}}, false},
		{"a b\tc  d\n", [][]string{{"a", "b", "c", "d"}}, false},
		{`load "/a b/c d.tar" name="x y"` + "\n", [][]string{{"load", "/a b/c d.tar", "name=x y"}}, false},
		{`""` + "\n", [][]string{{""}}, false},
		{"a\r\nb\r\n", [][]string{{"a"}, {"b"}}, false},
		{"a\nb \"c\n", nil, true},
		{"a\x00b\n", nil, true},
	} {
		got, err := splitLines(test.text)
		if (err != nil) != test.bad || !reflect.DeepEqual(got, test.want) {
			t.Errorf("splitLines(%q) = %q, %v; want %q", test.text, got, err, test.want)
		}
		if test.bad && !errors.Is(err, imgsrc.ErrInvalid) {
			t.Errorf("splitLines(%q): %v is not ErrInvalid", test.text, err)
		}
	}
}

func FuzzSplitLines(f *testing.F) {
	f.Add("a \"b c\" d\n# x\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines, err := splitLines(text)
		if err != nil && lines != nil {
			t.Error("lines beside an error")
		}
		for _, l := range lines {
			if len(l) == 0 {
				t.Error("an empty line")
			}
		}
	})
}

// writeIn cuts text the way a writer and the kernel do, into writes of at most n bytes, and writes it.
func writeIn(ctx context.Context, f *FS, control node, text string, n int) error {
	for off := 0; off < len(text); off += n {
		piece := text[off:min(len(text), off+n)]
		if err := f.control.write(ctx, control, fuse.Caller{}, []byte(piece), int64(off)); err != nil {
			return err
		}
	}
	return nil
}

func TestWritesAreJoined(t *testing.T) {
	var all strings.Builder
	var want []string
	for i := range 2000 {
		name := fmt.Sprintf("localhost/app%d", i+1)
		want = append(want, name)
		all.WriteString(name + "\n")
	}
	for _, size := range []int{1024, 4096, 8192, 3072, 1 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			f, _, ops := newTree(t, named(makeImage(t, "a")))
			tags := f.image(1).node(viewImage, rowByName["tags"].id)
			if err := writeIn(t.Context(), f, tags, all.String(), size); err != nil {
				t.Fatal(err)
			}
			if got := ops.lines(); !slices.Equal(got, want) {
				t.Errorf("%d lines, want %d; the first that differ: %q", len(got), len(want), got[:min(3, len(got))])
			}
		})
	}
}

func TestHalfLines(t *testing.T) {
	long := strings.Repeat("x", blockSize-2) // with a newline and a letter a block
	other := fuse.Caller{Owner: fuse.Owner{Uid: 7}}
	type write struct {
		who  fuse.Caller
		text string
		off  int64
		wait time.Duration
	}
	for _, test := range []struct {
		name   string
		writes []write
		want   []string
		events int
	}{
		{"no newline is a line", []write{{text: "a"}}, []string{"a"}, 0},
		{"a block's end is half a line", []write{{text: long + "\na"}, {text: "b\n", off: blockSize}}, []string{long, "ab"}, 0},
		{"not at offset 0", []write{{text: ""}, {text: "a\n"}}, []string{"a"}, 0},
		{"another user's is not joined", []write{{text: long + "\na"}, {who: other, text: "b\n", off: blockSize}}, []string{long, "b"}, 1},
		{"another offset's is not joined", []write{{text: long + "\na"}, {text: "b\n", off: 5}}, []string{long, "b"}, 1},
		{"too late", []write{{text: long + "\na"}, {text: "b\n", off: blockSize, wait: 3 * time.Second}}, []string{long, "b"}, 1},
		{"in time", []write{{text: long + "\na"}, {text: "b\n", off: blockSize, wait: time.Second}}, []string{long, "ab"}, 0},
		{"thrice", []write{{text: long + "\na"}, {text: long + "bc", off: blockSize}, {text: "d\n", off: 2 * blockSize}}, []string{long, "a" + long + "bcd"}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, _, ops := newTree(t, named(makeImage(t, "a")))
				push := f.image(1).node(viewImage, rowByName["push"].id)
				for _, w := range test.writes {
					time.Sleep(w.wait)
					if err := f.control.write(t.Context(), push, w.who, []byte(w.text), w.off); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(3 * time.Second)
				synctest.Wait()
				if got := ops.lines(); !slices.Equal(got, test.want) {
					t.Errorf("lines %q, want %q", got, test.want)
				}
				if len(ops.events) != test.events {
					t.Errorf("events %q, want %d", ops.events, test.events)
				}
			})
		})
	}
}

// A Go program's write is interrupted by its own runtime and comes back: it must find the half line where it was, and have
// the same key.
func TestInterruptedWriteComesBack(t *testing.T) {
	f, _, ops := newTree(t, named(makeImage(t, "a")))
	tags := f.image(1).node(viewImage, rowByName["tags"].id)
	first := strings.Repeat("x", blockSize-2) + "\na"
	if err := f.control.write(t.Context(), tags, fuse.Caller{}, []byte(first), 0); err != nil {
		t.Fatal(err)
	}
	ops.do = func(context.Context, Write) error { return context.Canceled }
	if err := f.control.write(t.Context(), tags, fuse.Caller{}, []byte("b\n"), blockSize); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	ops.do = nil
	if err := f.control.write(t.Context(), tags, fuse.Caller{}, []byte("b\n"), blockSize); err != nil {
		t.Fatal(err)
	}
	w := ops.writes[1:]
	if len(w) != 2 || w[0].Key != w[1].Key || w[1].Lines[0][0] != "ab" {
		t.Errorf("writes %+v", w)
	}
}

func TestControlTimeMoves(t *testing.T) {
	f, _, ops := newTree(t, named(makeImage(t, "a"), "localhost/a:1"))
	for _, name := range []string{"tags", "push"} {
		n := f.image(1).node(viewImage, rowByName[name].id)
		for _, result := range []error{nil, imgsrc.ErrInvalid, context.Canceled} {
			ops.do = func(context.Context, Write) error { return result }
			was, err := f.view(n).attr(t.Context(), n, false)
			if err != nil {
				t.Fatal(err)
			}
			_ = f.control.write(t.Context(), n, fuse.Caller{}, []byte("x\n"), 0)
			is, err := f.view(n).attr(t.Context(), n, false)
			if err != nil {
				t.Fatal(err)
			}
			if !is.mtime.After(was.mtime) {
				t.Errorf("%s: a write that ended with %v did not move the time", name, result)
			}
		}
	}
}

func TestTopControls(t *testing.T) {
	f, _, ops := newTree(t, named(makeImage(t, "a"), "localhost/a:1"))
	for _, name := range []string{"pull", "load"} {
		hit, err := f.view(rootNode).lookup(t.Context(), rootNode, name)
		if err != nil {
			t.Fatal(err)
		}
		if !f.isControl(hit.node) {
			t.Errorf("%s takes no writes", name)
		}
		for _, result := range []error{nil, imgsrc.ErrInvalid, context.Canceled} {
			ops.do = func(_ context.Context, w Write) error {
				if w.Control != name || w.Image != "" || !reflect.DeepEqual(w.Lines, [][]string{{"x", "all=true"}}) || !strings.HasPrefix(w.Key, name+" ") {
					t.Errorf("%s: %+v", name, w)
				}
				return result
			}
			was, err := f.view(hit.node).attr(t.Context(), hit.node, false)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.control.write(t.Context(), hit.node, fuse.Caller{}, []byte("x all=true\n"), 0); !errors.Is(err, result) {
				t.Errorf("%s: %v, want %v", name, err, result)
			}
			is, err := f.view(hit.node).attr(t.Context(), hit.node, false)
			if err != nil {
				t.Fatal(err)
			}
			if !is.mtime.After(was.mtime) || is.size != 0 || is.mode&0o777 != 0o644 || !is.live {
				t.Errorf("%s: after a write that ended with %v: %+v", name, result, is)
			}
		}
	}
	ops.lastError = "pulling x: no"
	hit, err := f.view(rootNode).lookup(t.Context(), rootNode, "error")
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.view(hit.node).attr(t.Context(), hit.node, false)
	if err != nil || a.size != int64(len(ops.lastError)+1) || f.isControl(hit.node) {
		t.Errorf("error: %+v, %v", a, err)
	}
}

// What somebody has put into the kernel's cache through a shared mapping is not what the control says.
func TestMappedWrite(t *testing.T) {
	f, _, ops := newTree(t, named(makeImage(t, "a"), "localhost/a:1"))
	n := f.image(1).node(viewImage, rowByName["tags"].id)
	was, err := f.view(n).attr(t.Context(), n, false)
	if err != nil {
		t.Fatal(err)
	}
	in := &fuse.WriteIn{WriteFlags: writeFromCache}
	in.NodeId = uint64(n)
	if _, s := f.Write(nil, in, []byte("localhost/b:1\n")); s != fuse.EIO {
		t.Errorf("%v", s)
	}
	is, err := f.view(n).attr(t.Context(), n, false)
	if err != nil || !is.mtime.After(was.mtime) || len(ops.writes) > 0 {
		t.Errorf("%v; from %v to %v; carried out: %+v", err, was.mtime, is.mtime, ops.writes)
	}
}

func TestLongLineIsRecorded(t *testing.T) {
	f, _, ops := newTree(t, named(makeImage(t, "a")))
	tags := f.image(1).node(viewImage, rowByName["tags"].id)
	_ = f.control.write(t.Context(), tags, fuse.Caller{}, []byte(strings.Repeat("x", maxLine+blockSize)), 0)
	if len(ops.writes) != 1 || !errors.Is(ops.writes[0].Err, imgsrc.ErrInvalid) || ops.writes[0].Lines != nil {
		t.Errorf("%+v", ops.writes)
	}
}

func TestControlHasTimes(t *testing.T) {
	f, _, _ := newTree(t, named(makeImage(t, "a"), "localhost/a:1"))
	in := &fuse.GetAttrIn{}
	in.NodeId = uint64(f.image(1).node(viewImage, rowByName["tags"].id))
	out := &fuse.AttrOut{}
	if s := f.GetAttr(nil, in, out); s != fuse.OK || out.Ctime != out.Mtime || out.Atime != out.Mtime {
		t.Errorf("%v %+v", s, out.Attr)
	}
}
