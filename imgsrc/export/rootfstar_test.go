package export

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A memLayer is a layer in memory: its entries, and the body of each by its Where.
type memLayer struct {
	files  []imgsrc.File
	bodies [][]byte
}

func (l *memLayer) add(f imgsrc.File, body []byte) {
	f.Where, f.Stored = uint64(len(l.bodies)), int64(len(body))
	if f.Extents == nil {
		f.Size = f.Stored
	}
	l.files, l.bodies = append(l.files, f), append(l.bodies, body)
}

func (l *memLayer) Key() imgsrc.FilesKey                       { return imgsrc.FilesKey{} }
func (l *memLayer) Close() error                               { return nil }
func (l *memLayer) Root(context.Context) (*imgsrc.File, error) { return nil, nil }

func (l *memLayer) ReadBody(context.Context, imgsrc.Body, []byte, int64) (int, error) {
	return 0, imgsrc.ErrAbsent
}

func (l *memLayer) Entries(_ context.Context, emit func(*imgsrc.File) error) error {
	for i := range l.files {
		f := l.files[i]
		if err := emit(&f); err != nil {
			return err
		}
	}
	return nil
}

// A memTree is layers in memory, merged.
type memTree struct {
	*layer.Tree
	layers []*memLayer
	files  sync.Map // of sparse files, by Body
}

func treeOf(t testing.TB, layers ...*memLayer) *memTree {
	t.Helper()
	var all []*layer.Index
	for _, l := range layers {
		x, err := layer.BuildIndex(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, x)
	}
	tree, err := layer.Merge(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	return &memTree{Tree: tree, layers: layers}
}

func (m *memTree) read(ctx context.Context, p layer.Place, b []byte, off int64) (int, error) {
	return readerOf(m.file(p))(ctx, b, off)
}

// file is a file with its holes.
func (m *memTree) file(p layer.Place) []byte {
	data := m.layers[p.Layer].bodies[p.Body.Where]
	if p.Extents == nil {
		return data
	}
	if file, ok := m.files.Load(p.Body); ok {
		return file.([]byte)
	}
	file := make([]byte, p.Size)
	for _, x := range p.Extents {
		copy(file[x.Off:], data[:x.Len])
		data = data[x.Len:]
	}
	m.files.Store(p.Body, file)
	return file
}

func (m *memTree) reader(r *RootfsTar) func(context.Context, []byte, int64) (int, error) {
	return func(ctx context.Context, p []byte, off int64) (int, error) {
		return r.ReadAt(ctx, m.Tree, m.read, p, off)
	}
}

// whole reads the tar from start to end.
func (m *memTree) whole(t testing.TB, r *RootfsTar) []byte {
	t.Helper()
	b := make([]byte, r.Size())
	if n, err := m.reader(r)(t.Context(), b, 0); n != len(b) || err != nil && err != io.EOF {
		t.Fatalf("reading all of it: %d of %d, %v", n, len(b), err)
	}
	return b
}

var made = time.Unix(1700000000, 5)

func layOut(t testing.TB, m *memTree) *RootfsTar {
	t.Helper()
	r, err := LayOutRootfs(t.Context(), m.Tree, made)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// checkTar compares the tar with the tree.
func checkTar(t testing.TB, m *memTree, b []byte) {
	t.Helper()
	var order []uint32
	var walk func(n uint32)
	walk = func(n uint32) {
		order = append(order, n)
		first, count, _ := m.Dir(n)
		for i := range count {
			walk(first + i)
		}
	}
	walk(0)
	r := tar.NewReader(bytes.NewReader(b))
	firsts := map[uint32]string{}
	for _, n := range order {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("at %q: %v", m.Path(n), err)
		}
		a, err := m.Attr(n)
		if err != nil {
			t.Fatal(err)
		}
		mtime := time.Unix(a.Sec, int64(a.Nsec))
		if a.Implicit {
			mtime = made
		}
		if strings.Trim(strings.TrimPrefix(h.Name, "./"), "/") != m.Path(n) || h.Mode != int64(a.Mode&0o7777) || h.Uid != int(a.UID) || h.Gid != int(a.GID) || !h.ModTime.Equal(mtime) {
			t.Fatalf("%q is %+v, and in the tree %+v", m.Path(n), h, a)
		}
		xattrs := 0
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				xattrs++
			}
		}
		if xattrs != len(m.Xattrs(n)) {
			t.Fatalf("%q has %d extended attributes, want %d", m.Path(n), xattrs, len(m.Xattrs(n)))
		}
		if first, ok := firsts[m.Inode(n)]; ok && a.Nlink > 1 {
			if h.Typeflag != tar.TypeLink || h.Linkname != first {
				t.Fatalf("%q is no link to %q: %+v", m.Path(n), first, h)
			}
			continue
		}
		firsts[m.Inode(n)] = m.Path(n)
		types := map[uint32]byte{unix.S_IFREG: '0', unix.S_IFLNK: '2', unix.S_IFCHR: '3', unix.S_IFBLK: '4', unix.S_IFDIR: '5', unix.S_IFIFO: '6'}
		if h.Typeflag != types[a.Mode&unix.S_IFMT] {
			t.Fatalf("%q has type %c, mode %o", m.Path(n), h.Typeflag, a.Mode)
		}
		target, _ := m.Readlink(n)
		if h.Linkname != target || uint32(h.Devmajor)<<8|uint32(h.Devminor) != a.Rdev {
			t.Fatalf("%q is %+v", m.Path(n), h)
		}
		p, ok := m.Place(n)
		if !ok {
			continue
		}
		want := m.file(p)
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q has %d bytes, want %d, or others, %v", m.Path(n), len(got), len(want), err)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Fatalf("at the end: %v", err)
	}
}

// randomLayers are layers of files of all kinds, whose names meet.
func randomLayers(r *rand.Rand) []*memLayer {
	var layers []*memLayer
	name := func() string {
		s := ""
		for range 1 + r.IntN(3) {
			s += "/" + []string{"a", "b", "c", strings.Repeat("long", 30), "\xff", "d e"}[r.IntN(6)]
		}
		return s[1:]
	}
	for range 1 + r.IntN(3) {
		l := &memLayer{}
		var regular []string
		for range r.IntN(40) {
			f := imgsrc.File{
				Name: name(), Mode: 0o400 | r.Uint32()&0o7777, UID: r.Uint32() >> (r.Uint32() % 32), Sec: r.Int64N(1<<34) - 1<<20, Nsec: r.Uint32N(2) * r.Uint32N(1e9),
			}
			if r.IntN(8) == 0 {
				f.Xattrs = []imgsrc.Xattr{{Name: "user.x", Value: strings.Repeat("v\x00", 1+r.IntN(1000))}}
			}
			body := bytes.Repeat([]byte{byte('a' + r.IntN(26))}, []int{0, 1, 511, 512, 513, 3000}[r.IntN(6)])
			switch f.Type = "0001234567"[r.IntN(10)]; f.Type {
			case '0':
				regular = append(regular, f.Name)
				if k := int64(len(body)); k > 0 && r.IntN(4) == 0 {
					f.Extents, f.Size = []imgsrc.Extent{{Off: 700, Len: k / 2}, {Off: 9000, Len: k - k/2}}, 9000+k+r.Int64N(2)*5000
				}
			case '7':
				f.Type = '0'
				f.Name = ".wh." + name()
				body = nil
			case '1':
				if len(regular) == 0 {
					continue
				}
				f.Link, body = regular[r.IntN(len(regular))], nil
			case '2':
				f.Link, body = name()+name(), nil
			case '3', '4':
				f.Major, f.Minor, body = 1+r.Uint32N(200), r.Uint32N(200), nil
			default:
				body = nil
			}
			l.add(f, body)
		}
		layers = append(layers, l)
	}
	return layers
}

func TestRootfsTar(t *testing.T) {
	lost := 0
	for seed := range uint64(300) {
		m := treeOf(t, randomLayers(rand.New(rand.NewPCG(seed, 7)))...)
		r, err := LayOutRootfs(t.Context(), m.Tree, made)
		if errors.Is(err, imgsrc.ErrDamaged) { // a link whose target a later entry has replaced with something else
			lost++
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		b := m.whole(t, r)
		checkTar(t, m, b)
		checkReads(t, seed, b, m.reader(r))
		if again := m.whole(t, layOut(t, treeOf(t, m.layers...))); !bytes.Equal(b, again) {
			t.Fatalf("seed %d: another archive", seed)
		}
	}
	if lost > 100 {
		t.Errorf("%d of 300 trees have links to nothing", lost)
	}
}

func TestRootfsTarEmpty(t *testing.T) {
	m := treeOf(t)
	b := m.whole(t, layOut(t, m))
	if len(b) != 512+1024+1024 { // "./" with the time in a record
		t.Errorf("%d bytes", len(b))
	}
	checkTar(t, m, b)
}

// A map of many extents is made once for all who read the file, and not for each part.
func TestRootfsTarLargeMap(t *testing.T) {
	l := &memLayer{}
	f := imgsrc.File{Name: "sparse", Type: '0', Mode: 0o644, Extents: []imgsrc.Extent{}}
	for i := range int64(8000) {
		f.Extents = append(f.Extents, imgsrc.Extent{Off: i*8192 + 700, Len: 1})
	}
	f.Size = 8000 * 8192
	l.add(f, bytes.Repeat([]byte{'x'}, 8000))
	l.add(imgsrc.File{Name: "z", Type: '0', Mode: 0o644}, []byte("small"))
	m := treeOf(t, l)
	r := layOut(t, m)
	b := m.whole(t, r)
	checkReads(t, 1, b, m.reader(r))
	checkTar(t, m, b)
	if r.large.Load() == nil {
		t.Error("the large header was not kept")
	}
}

func TestRootfsTarFailures(t *testing.T) {
	l := &memLayer{}
	l.add(imgsrc.File{Name: "gone", Type: '1', Link: "nowhere", Mode: 0o644}, nil)
	if _, err := LayOutRootfs(t.Context(), treeOf(t, l).Tree, made); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("a link to nothing: %v", err)
	}

	l = &memLayer{}
	for i := range 5000 {
		l.add(imgsrc.File{Name: fmt.Sprint(i), Type: '0', Mode: 0o644}, []byte("body"))
	}
	m := treeOf(t, l)
	r := layOut(t, m)
	if got := r.Memory(); got > 5001*16 {
		t.Errorf("%d bytes of memory", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := LayOutRootfs(ctx, m.Tree, made); !errors.Is(err, context.Canceled) {
		t.Errorf("laying out with a context that has ended: %v", err)
	}
	if _, err := m.reader(r)(ctx, make([]byte, 1<<20), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("reading with a context that has ended: %v", err)
	}

	other := &memLayer{}
	for i := range 5000 {
		other.add(imgsrc.File{Name: fmt.Sprint(i), Type: '0', Mode: 0o644}, bytes.Repeat([]byte("body"), 200))
	}
	if _, err := treeOf(t, other).reader(r)(t.Context(), make([]byte, 10000), 0); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("reading from another tree: %v", err)
	}
	l.bodies[slices.IndexFunc(l.files, func(f imgsrc.File) bool { return f.Name == "10" })] = []byte("bo")
	if _, err := m.reader(r)(t.Context(), make([]byte, 10000), 0); !errors.Is(err, imgsrc.ErrDamaged) || !strings.Contains(err.Error(), `"10"`) {
		t.Errorf("a body that is too short: %v", err)
	}
}
