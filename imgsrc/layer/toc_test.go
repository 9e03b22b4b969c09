package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/images"
)

// tocFiles are the files of a blob in memory, by its table of contents.
type tocFiles struct {
	blob   []byte
	ref    TOCRef
	chunks *Chunks
}

func (f *tocFiles) read(_ context.Context, from, to int64) ([]byte, error) {
	if from < 0 || from > to || to > int64(len(f.blob)) {
		return nil, fmt.Errorf("bytes %d to %d of %d", from, to, len(f.blob))
	}
	return f.blob[from:to], nil
}

func (f *tocFiles) Entries(ctx context.Context, emit func(*imgsrc.File) error) error {
	toc, err := f.ref.ReadTOC(ctx, f.read)
	if err != nil {
		return err
	}
	chunks, err := toc.Entries(ctx, emit)
	if err == nil {
		f.chunks = chunks
	}
	return err
}

func (f *tocFiles) ReadBody(ctx context.Context, b imgsrc.Body, p []byte, off int64) (int, error) {
	return f.chunks.Read(ctx, b, p, off, func(_ context.Context, n int) ([]byte, error) {
		return f.chunks.Unpack(n, f.blob[f.chunks.list[n].off:f.chunks.list[n].end])
	})
}

func (f *tocFiles) Key() imgsrc.FilesKey {
	return imgsrc.FilesKey{Form: TOCForm, Digest: digest.FromBytes(f.blob), Place: f.ref.Digest.String()}
}

func (f *tocFiles) Root(ctx context.Context) (*imgsrc.File, error) {
	return RootOf(func(emit func(*imgsrc.File) error) error { return f.Entries(ctx, emit) })
}

func (f *tocFiles) Close() error { return nil }

// tocBlobs makes a layer in each way in which one has a table of contents.
func tocBlobs(t testing.TB, entries []images.Entry) map[string]*tocFiles {
	t.Helper()
	made := map[string]*tocFiles{}
	marked := append([]images.Entry{images.File(".no.prefetch.landmark", "\x0f")}, entries...)
	for name, together := range map[string]int{"estargz": 0, "estargz together": 256 << 10} {
		blob, _, annotations, err := images.EStargzBlob(together, marked)
		made[name] = newTOCFiles(t, blob, annotations, err)
	}
	seen := map[string]bool{} // podman's library does not take a name twice
	blob, _, annotations, err := images.ChunkedBlob(slices.DeleteFunc(slices.Clone(entries), func(e images.Entry) bool {
		twice := seen[e.Name]
		seen[e.Name] = true
		return twice
	}))
	made["zstd:chunked"] = newTOCFiles(t, blob, annotations, err)
	return made
}

func newTOCFiles(t testing.TB, blob []byte, annotations map[string]string, err error) *tocFiles {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := FindTOC(annotations, int64(len(blob)))
	if err != nil {
		t.Fatal(err)
	}
	return &tocFiles{blob: blob, ref: ref}
}

// allKinds are the layers of an image that has every kind of entry, names that JSON cannot say left out.
func allKinds() [][]images.Entry {
	noise := images.Big(300_000).Layers[0].Entries[0].Data
	first := []images.Entry{
		images.Dir(".").WithMode(0o750).WithOwner(1, 2), images.File("large", string(noise)), images.File("part", string(noise[:images.StargzChunk])),
		images.File("holes", "a"+strings.Repeat("\x00", 200_000)+"b"), images.File("old", "").WithTime(time.Unix(0, 0)),
	}
	var layers [][]images.Entry
	for _, l := range images.Odd().Layers {
		layers = append(layers, slices.DeleteFunc(slices.Clone(l.Entries), func(e images.Entry) bool { return strings.Contains(e.Name, "utf8") }))
	}
	layers[0] = append(first, layers[0]...)
	for _, l := range images.App().Layers {
		if !l.Empty {
			layers = append(layers, l.Entries)
		}
	}
	return layers
}

// describeAll lists a tree, a line a node, with all that can be seen of it. Times are rounded to the
// second, as eStargz has them.
func describeAll(t *testing.T, tree *Tree, bodies []imgsrc.Files) []string {
	t.Helper()
	var lines []string
	for n := range tree.Len() {
		a, err := tree.Attr(n)
		line := fmt.Sprintf("%q ino %d %o %d:%d nlink %d rdev %d size %d implicit %v %v", tree.Path(n), tree.Inode(n), a.Mode, a.UID, a.GID, a.Nlink, a.Rdev, a.Size, a.Implicit, err)
		line += fmt.Sprint(" at ", time.Unix(a.Sec, int64(a.Nsec)).Round(time.Second).Unix())
		link, _ := tree.Readlink(n)
		line += fmt.Sprintf(" -> %q %q", link, tree.Xattrs(n))
		if p, ok := tree.Place(n); ok {
			line += fmt.Sprint(" content ", digest.FromBytes(readPlace(t, bodies[p.Layer], p)))
		}
		lines = append(lines, line)
	}
	return lines
}

func readPlace(t *testing.T, files imgsrc.Files, p Place) []byte {
	t.Helper()
	var all []byte
	buf := make([]byte, 50_000)
	for {
		n, err := files.ReadBody(t.Context(), p.Body, buf, int64(len(all)))
		all = append(all, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("reading %q at %d: %v", p.Body.Path, len(all), err)
		}
	}
	if int64(len(all)) != p.Body.Size {
		t.Fatalf("%q has %d bytes of %d", p.Body.Path, len(all), p.Body.Size)
	}
	return all
}

// What a table of contents says is what the tar says: of each layer, and of all of them merged.
func TestTOCIsTar(t *testing.T) {
	byForm := map[string][2][]imgsrc.Files{}
	for _, entries := range allKinds() {
		for form, toc := range tocBlobs(t, entries) {
			z, _, err := Decompress(bytes.NewReader(toc.blob))
			if err != nil {
				t.Fatal(err)
			}
			plain, err := io.ReadAll(z)
			if err != nil {
				t.Fatal(err)
			}
			all := byForm[form]
			all[0] = append(all[0], TarFiles(plainTar(plain), imgsrc.FilesKey{Form: TarForm, Digest: digest.FromBytes(plain)}, nil))
			all[1] = append(all[1], toc)
			byForm[form] = all
		}
	}
	for form, both := range byForm {
		t.Run(form, func(t *testing.T) {
			var trees [2][]string
			for i, files := range both {
				var layers []*Index
				for _, f := range files {
					x, err := BuildIndex(t.Context(), f)
					if err != nil {
						t.Fatal(err)
					}
					layers = append(layers, x)
					root, err := f.Root(t.Context())
					if root != nil {
						root.Where = 0
					}
					trees[i] = append(trees[i], fmt.Sprintf("root %+v %v", root, err))
				}
				merged, err := Merge(t.Context(), layers)
				if err != nil {
					t.Fatal(err)
				}
				trees[i] = append(trees[i], describeAll(t, merged, files)...)
				for n := range layers {
					tree := NewTree(layers[:n], layers[n])
					trees[i] = append(trees[i], describeAll(t, tree, files[n+1-tree.Layers():])...)
				}
			}
			for i := range max(len(trees[0]), len(trees[1])) {
				if trees[0][min(i, len(trees[0])-1)] != trees[1][min(i, len(trees[1])-1)] {
					t.Fatalf("tar %s\ntoc %s", trees[0][i], trees[1][i])
				}
			}
			if len(trees[0]) < 100 {
				t.Errorf("%d lines", len(trees[0]))
			}
		})
	}
}

// plainTar is a content in memory.
type plainTar []byte

func (m plainTar) Size(context.Context) (int64, error) { return int64(len(m)), nil }
func (m plainTar) Close() error                        { return nil }
func (m plainTar) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}

// Reads of parts of a file, across chunks and beyond its end, and each chunk that is wrong.
func TestChunks(t *testing.T) {
	data := images.Big(300_000).Layers[0].Entries[0].Data
	data = slices.Concat(data, make([]byte, 100_000), data[:1000])
	for form, f := range tocBlobs(t, []images.Entry{images.File("a", "small"), images.File("b", string(data)), images.File("c", "last")}) {
		t.Run(form, func(t *testing.T) {
			x, err := BuildIndex(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			tree := NewTree(nil, x)
			n, _ := tree.Child(0, "b")
			p, _ := tree.Place(n)
			for _, at := range []int64{0, 1, 65_535, 65_536, 200_000, 299_999, 350_000, 399_999, 400_999, 401_000, 401_001, 1 << 40} {
				for _, size := range []int{1, 1000, 100_000, 1 << 20} {
					got := make([]byte, size)
					n, err := f.ReadBody(t.Context(), p.Body, got, at)
					want := data[min(at, int64(len(data))):min(at+int64(size), int64(len(data)))]
					if !bytes.Equal(got[:n], want) || (err != nil) != (n < size) || err != nil && err != io.EOF {
						t.Fatalf("%d bytes at %d: %d, %v", size, at, n, err)
					}
				}
			}
			for i, c := range f.chunks.list {
				if c.zeros {
					continue
				}
				packed := slices.Clone(f.blob[c.off:c.end])
				for _, bad := range [][]byte{nil, packed[:1], packed[:len(packed)/2], append([]byte{packed[0] ^ 1}, packed[1:]...), flipped(packed, 12), make([]byte, len(packed)), f.blob[:100]} {
					if b, err := f.chunks.Unpack(i, bad); !errors.Is(err, imgsrc.ErrDamaged) {
						if want, _ := f.chunks.Unpack(i, packed); !bytes.Equal(b, want) {
							t.Errorf("chunk %d from %d wrong bytes: %d bytes, %v", i, len(bad), len(b), err)
						}
					}
				}
			}
			if _, err := f.ReadBody(t.Context(), imgsrc.Body{Path: "x", Size: 1, Where: 1<<40 | 12345}, make([]byte, 1), 0); !errors.Is(err, imgsrc.ErrDamaged) {
				t.Errorf("another layer's body: %v", err)
			}
		})
	}
}

func flipped(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[at%len(b)] ^= 0x40
	return b
}

// What cannot be verified, or says what a tar would say otherwise, is not used.
func TestTOCUnusable(t *testing.T) {
	sum := digest.FromString("x").String()
	for _, c := range []struct {
		annotations map[string]string
		want        error
	}{
		{nil, imgsrc.ErrAbsent},
		{map[string]string{chunkedPosition: "1:2:3:1"}, imgsrc.ErrAbsent},
		{map[string]string{chunkedChecksum: sum}, imgsrc.ErrAbsent},
		{map[string]string{stargzDigest: "sha256:12"}, imgsrc.ErrUnsupported},
		{map[string]string{stargzDigest: "sha512:" + strings.Repeat("0", 128)}, imgsrc.ErrUnsupported},
		{map[string]string{chunkedChecksum: sum, chunkedPosition: "1:2:3:2"}, imgsrc.ErrUnsupported},
		{map[string]string{chunkedChecksum: sum, chunkedPosition: "1:2:3"}, imgsrc.ErrUnsupported},
		{map[string]string{chunkedChecksum: sum, chunkedPosition: "-1:2:3:1"}, imgsrc.ErrUnsupported},
		{map[string]string{chunkedChecksum: sum, chunkedPosition: "999:2:3:1"}, imgsrc.ErrUnsupported},
		{map[string]string{chunkedChecksum: sum, chunkedPosition: "1:2:9000000000:1"}, imgsrc.ErrUnsupported},
		{map[string]string{chunkedChecksum: sum, chunkedPosition: "9223372036854775807:9223372036854775807:3:1"}, imgsrc.ErrUnsupported},
		{map[string]string{chunkedChecksum: sum, chunkedPosition: "1:2:3:1"}, nil},
		{map[string]string{oldChunkedChecksum: sum, oldChunkedPosition: "1:2:3:1"}, nil},
		{map[string]string{oldChunkedChecksum: "x", oldChunkedPosition: "1:2:3:1", chunkedChecksum: sum, chunkedPosition: "1:2:3:1", stargzDigest: "y"}, nil},
		{map[string]string{oldChunkedChecksum: sum, chunkedPosition: "1:2:3:1"}, imgsrc.ErrAbsent},
		{map[string]string{stargzDigest: sum}, nil},
	} {
		if _, err := FindTOC(c.annotations, 1000); !errors.Is(err, c.want) {
			t.Errorf("%v: %v", c.annotations, err)
		}
	}
	reg := `{"type":"reg","name":"a","size":3,"offset":10,"digest":"` + sum + `"`
	for _, text := range []string{
		``, `[]`, `{`, `{"version":1`, `{"entries":[]}`, `{"version":2,"entries":[]}`, `{"version":1,"entries":{}}`, `{"version":1,"entries":[],"entries":[]}`,
		`{"version":1,"entries":[{}]}`, `{"version":1,"entries":[{"type":"socket","name":"a"}]}`,
		`{"version":1,"entries":[{"type":"dir","name":"a\ufffd"}]}`, "{\"version\":1,\"entries\":[{\"type\":\"dir\",\"name\":\"a\xff\"}]}",
		`{"version":1,"entries":[{"type":"symlink","name":"a","linkName":"\ufffd"}]}`, `{"version":1,"entries":[{"type":"dir","name":"a","xattrs":{"user.\ufffd":""}}]}`,
		`{"version":1,"entries":[{"type":"reg","name":"a","size":-1}]}`, `{"version":1,"entries":[{"type":"reg","name":"a","size":1e99}]}`,
		`{"version":1,"entries":[{"type":"char","name":"a","devMajor":-1}]}`, `{"version":1,"entries":[{"type":"dir","name":"a","modtime":"yesterday"}]}`,
		`{"version":1,"entries":[{"type":"reg","name":"a","size":3,"offset":10}]}`,                                           // no digest
		`{"version":1,"entries":[` + strings.Replace(reg, `:10,`, `:-10,`, 1) + `}]}`,                                        // before the blob
		`{"version":1,"entries":[` + strings.Replace(reg, `:10,`, `:1000,`, 1) + `}]}`,                                       // behind it
		`{"version":1,"entries":[` + reg + `,"innerOffset":-1}]}`,                                                            // before its stream
		`{"version":1,"entries":[` + reg + `,"innerOffset":9000000000000000000}]}`,                                           // far behind it
		`{"version":1,"entries":[` + strings.Replace(reg, `:3,`, `:9000000000,`, 1) + `}]}`,                                  // too much at once
		`{"version":1,"entries":[` + reg + `,"chunkSize":4}]}`,                                                               // a chunk beyond the file
		`{"version":1,"entries":[` + reg + `,"chunkSize":2,"chunkDigest":"` + sum + `"}]}`,                                   // too few chunks
		`{"version":1,"entries":[` + reg + `},{"type":"chunk","name":"a","chunkOffset":3,"chunkSize":1}]}`,                   // too many
		`{"version":1,"entries":[{"type":"chunk","name":"a","chunkSize":1}]}`,                                                // of nothing
		`{"version":1,"entries":[` + reg + `,"chunkSize":2,"chunkDigest":"` + sum + `"},{"type":"chunk","name":"b"}]}`,       // another's
		`{"version":1,"entries":[` + reg + `,"chunkSize":-2,"chunkDigest":"` + sum + `"}]}`,                                  // negative
		`{"version":1,"entries":[` + reg + `,"chunkType":"holes"}]}`,                                                         // unknown
		`{"version":1,"entries":[{"type":"reg","name":"a","size":3,"offset":10,"digest":"md5:00000000000000000000000000"}]}`, // another digest
	} {
		for _, ref := range []TOCRef{{}, {zstd: true}} {
			if _, err := entriesOf(ref, []byte(text), 1000, func(*imgsrc.File) error { return nil }); !errors.Is(err, imgsrc.ErrUnsupported) {
				t.Errorf("%s: %v", text, err)
			}
		}
	}
}

// A blob that is not what its manifest says has no table of contents.
func TestTOCDamaged(t *testing.T) {
	for form, f := range tocBlobs(t, allKinds()[0]) {
		for name, spoil := range map[string]func(){
			"empty":  func() { f.blob, f.ref.size = nil, 0 },
			"cut":    func() { f.blob = f.blob[:len(f.blob)/2]; f.ref.size = int64(len(f.blob)) },
			"zeros":  func() { f.blob = make([]byte, len(f.blob)) },
			"digest": func() { f.ref.Digest = digest.FromString("another") },
			"footer": func() {
				f.blob = append(slices.Clone(f.blob[:len(f.blob)-stargzFooter]), bytes.Repeat([]byte("f"), stargzFooter)...)
			},
			"far offset":    func() { copy(f.blob[len(f.blob)-stargzFooter+16:], "7fffffffffffffff") },
			"before it":     func() { copy(f.blob[len(f.blob)-stargzFooter+16:], "-000000000000001") },
			"plain smaller": func() { f.ref.plain-- },
		} {
			was := *f
			f.blob = slices.Clone(f.blob)
			spoil()
			stargz := name == "footer" || name == "far offset" || name == "before it"
			if err := f.Entries(t.Context(), func(*imgsrc.File) error { return nil }); err == nil && stargz == !was.ref.zstd && (name != "plain smaller" || was.ref.zstd) {
				t.Errorf("%s, %s: no error", form, name)
			}
			*f = was
		}
	}
}

// A table that expands without end, or in which one thing does, takes no more memory than its bounds.
func TestTOCBomb(t *testing.T) {
	chunked := func(plain []byte, said int64) error {
		packed := zstded(t, plain)
		ref := TOCRef{Digest: digest.FromBytes(packed), size: int64(len(packed)) + 1, zstd: true, off: 1, packed: int64(len(packed)), plain: said}
		return (&tocFiles{blob: append([]byte{0}, packed...), ref: ref}).Entries(t.Context(), nil)
	}
	blank := bytes.Repeat([]byte(" "), 2*maxTOCEntry)
	long := slices.Concat([]byte(`{"version":1,"x":"`), blank, []byte(`"}`))
	for what, err := range map[string]error{
		"more than is said":   chunked(make([]byte, 1<<20), 10),
		"blanks":              chunked(blank, int64(len(blank))),
		"one thing is large":  chunked(long, int64(len(long))),
		"too large by itself": estargzOf(t, maxTOC+1, nil),
	} {
		if !errors.Is(err, imgsrc.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := chunked([]byte(`{"version":1,"entries":[]}`), 100); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("less than is said: %v", err)
	}
	if err := estargzOf(t, 100, []byte(`{"version":1,"entries":[]}`)); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("cut: %v", err)
	}
	table := []byte(`{"version":1,"entries":[]}`)
	if err := errors.Join(estargzOf(t, int64(len(table)), table), chunked(table, int64(len(table)))); err != nil {
		t.Error(err)
	}
}

// Who leaves while a table is gone through does not wait for the rest of it.
func TestTOCCancelled(t *testing.T) {
	for form, f := range tocBlobs(t, cancelledKind()) {
		for _, emits := range []int{0, 1} {
			ctx, cancel := context.WithCancel(t.Context())
			n := 0
			read := f.read
			if emits == 0 {
				read = func(ctx context.Context, from, to int64) ([]byte, error) {
					cancel()
					return f.read(ctx, from, to)
				}
			}
			toc, err := f.ref.ReadTOC(ctx, read)
			if err == nil {
				_, err = toc.Entries(ctx, func(*imgsrc.File) error {
					n++
					cancel()
					return nil
				})
			}
			if !errors.Is(err, context.Canceled) || errors.Is(err, imgsrc.ErrDamaged) || n > cancelledFiles/2 {
				t.Errorf("%s: %d of %d files: %v", form, n, cancelledFiles, err)
			}
			cancel()
		}
	}
}

const cancelledFiles = 3000

// cancelledKind are so many files that their table is not read at once.
func cancelledKind() []images.Entry {
	var entries []images.Entry
	for n := range cancelledFiles {
		entries = append(entries, images.File(fmt.Sprintf("%05d", n), "x"))
	}
	return entries
}

// However small its entries are, a table stands for no more than can be in memory.
func TestTOCManyChunks(t *testing.T) {
	const table = `{"version":1,"entries":[{"type":"reg","name":"a","size":2,"chunkSize":1,"chunkType":"zeros"},{"type":"chunk","chunkOffset":1,"chunkType":"zeros"}]}`
	for extra, want := range []error{nil, imgsrc.ErrUnsupported} {
		s := &tocScan{end: 1, allow: func(int64) {}, chunks: make([]chunk, maxChunks-2+extra)}
		if err := s.scan(strings.NewReader(table)); !errors.Is(err, want) {
			t.Errorf("%d chunks: %v", len(s.chunks), err)
		}
	}
	s := &tocScan{end: 1, allow: func(int64) {}, named: maxTurnNames - 1}
	if err := s.scan(strings.NewReader(table)); err != nil || s.names == nil {
		t.Errorf("names of %d bytes are not kept: %v", s.named, err)
	}
	s.named++
	if err := s.scan(strings.NewReader(table)); err != nil || s.names != nil {
		t.Errorf("names of %d bytes are kept: %v", s.named, err)
	}
}

// estargzOf reads the table out of a blob that has nothing else, and says that it has size bytes.
func estargzOf(t *testing.T, size int64, table []byte) error {
	t.Helper()
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	if err := w.WriteHeader(&tar.Header{Name: stargzTOC, Typeflag: tar.TypeReg, Size: size}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(table); err != nil {
		t.Fatal(err)
	}
	_ = w.Flush() // it says what is missing
	blob := gzipped(t, plain.Bytes())
	blob = fmt.Appendf(blob, "\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x1a\x00SG\x16\x00%016xSTARGZ%s", 0, make([]byte, 13))
	ref := TOCRef{Digest: digest.FromBytes(table), size: int64(len(blob))}
	return (&tocFiles{blob: blob, ref: ref}).Entries(t.Context(), nil)
}

// A layer with very many files is listed in a bounded part of what its table takes.
func TestTOCLarge(t *testing.T) {
	const files, sum = 200_000, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	var table bytes.Buffer
	table.WriteString(`{"version":1,"entries":[`)
	for i := range files {
		fmt.Fprintf(&table, "%s{\"type\":\"reg\",\"name\":\"usr/share/some/directory/file-%07d\",\"modtime\":\"2024-01-02T03:04:05Z\",\"size\":3,\"offset\":%d,\"digest\":%q,\"chunkDigest\":%q}", ",\n"[:min(i, 1)], i, i*10, sum, sum)
	}
	table.WriteString(`]}`)
	packed := zstded(t, table.Bytes())
	size := int64(files*10 + len(packed))
	ref := TOCRef{Digest: digest.FromBytes(packed), size: size, zstd: true, off: files * 10, packed: int64(len(packed)), plain: int64(table.Len())}
	table = bytes.Buffer{}
	toc, err := ref.ReadTOC(t.Context(), func(context.Context, int64, int64) ([]byte, error) { return packed, nil })
	if err != nil {
		t.Fatal(err)
	}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n, most := 0, uint64(0)
	chunks, err := toc.Entries(t.Context(), func(*imgsrc.File) error {
		if n++; n%(files/4) == 0 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc-min(before.HeapAlloc, now.HeapAlloc))
		}
		return nil
	})
	if err != nil || n != files || chunks.Files() != files {
		t.Fatalf("%d files, %v", n, err)
	}
	if limit := uint64(chunks.Memory()*3 + 16<<20); most > limit {
		t.Errorf("%d MiB, more than %d", most>>20, limit>>20)
	}
}
