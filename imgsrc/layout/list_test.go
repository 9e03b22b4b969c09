package layout

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/indexjson"
)

func TestList(t *testing.T) {
	const image = v1.MediaTypeImageManifest
	missing := v1.Descriptor{MediaType: image, Digest: digest.FromString("missing"), Size: 7}
	for name, test := range map[string]struct {
		make     func(l *testLayout) (want []string)
		problems int
	}{
		"names": {make: func(l *testLayout) []string {
			a, b := l.image("a"), l.image("b")
			l.name(a, "latest")
			l.name(b, "web-1.0")
			l.name(a, "a/b:c")
			l.name(a, "latest")
			l.name(b, "with blank\nand \"newline\"")
			return []string{show(a, "", "latest", "a/b:c"), show(b, "", "web-1.0", "with blank\nand \"newline\"")}
		}},
		"one name, two images": {make: func(l *testLayout) []string {
			a, b := l.image("a"), l.image("b")
			l.name(a, "latest")
			l.name(b, "latest")
			return []string{show(a, "", "latest"), show(b, "", "latest")}
		}},
		"docker save": {make: func(l *testLayout) []string {
			a := l.image("a")
			l.add(a, indexjson.NameContainerd, "docker.io/library/busybox:1", v1.AnnotationRefName, "1")
			l.add(a, indexjson.NameContainerd, "", v1.AnnotationRefName, "2")
			return []string{show(a, "", "docker.io/library/busybox:1", "2")}
		}},
		"no names": {make: func(l *testLayout) []string {
			a := l.image("a")
			l.add(a)
			l.add(a, v1.AnnotationRefName, "")
			return []string{show(a, "")}
		}},
		"nested": {make: func(l *testLayout) []string {
			a, b, c := l.image("a"), l.image("b"), l.image("c")
			inner := l.nested(a, b)
			outer := l.nested(inner, c)
			l.name(outer, "multi")
			l.name(b, "b")
			return []string{show(outer, "", "multi"), show(b, "", "b"), show(inner, ""), show(c, ""), show(a, "")}
		}},
		"too deep": {make: func(l *testLayout) []string {
			d := l.image("a")
			var want []string
			for range maxDepth + 1 {
				d = l.nested(d)
				want = append([]string{show(d, "")}, want...)
			}
			l.name(d, "deep")
			want[0] = show(d, "", "deep")
			return want
		}, problems: 1},
		"an index in itself": {make: func(l *testLayout) []string {
			// A cycle needs a file that is not what its name says.
			d := digest.FromString("cycle")
			inner := l.nested(v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: d, Size: 100})
			outer := l.blobAs(v1.MediaTypeImageIndex, []byte(text(l, v1.Index{Manifests: []v1.Descriptor{inner}})), d)
			l.name(outer, "cycle")
			l.name(inner, "inner")
			return []string{show(outer, "!!", "cycle"), show(inner, "", "inner")}
		}},
		"missing": {make: func(l *testLayout) []string {
			a := l.image("a")
			l.name(missing, "gone")
			l.name(a, "a")
			return []string{show(missing, "!!", "gone"), show(a, "", "a")}
		}},
		"missing below an index": {make: func(l *testLayout) []string {
			ix := l.nested(missing)
			l.name(ix, "ix")
			return []string{show(ix, "", "ix")} // a layout may leave out platforms
		}},
		"another digest": {make: func(l *testLayout) []string {
			a := l.blobAs(image, []byte("{}"), digest.FromString("x"))
			l.name(a, "a")
			return []string{show(a, "!!", "a")}
		}},
		"another size": {make: func(l *testLayout) []string {
			a := l.image("a")
			a.Size++
			l.name(a, "a")
			return []string{show(a, "!!", "a")}
		}},
		"100 MB": {make: func(l *testLayout) []string {
			a := v1.Descriptor{MediaType: image, Digest: digest.FromString("big"), Size: 100e6}
			sparse(blobPath(a.Digest), 100e6)(l)
			l.name(a, "big")
			return []string{show(a, "!!", "big")}
		}},
		"not JSON": {make: func(l *testLayout) []string {
			a := l.blob(image, []byte("hello"))
			l.name(a, "a")
			return []string{show(a, "!!", "a")}
		}},
		"neither manifest nor index": {make: func(l *testLayout) []string {
			a := l.blob(image, []byte("{}"))
			l.name(a, "a")
			return []string{show(a, "!!", "a")}
		}},
		"a directory": {make: func(l *testLayout) []string {
			a := v1.Descriptor{MediaType: image, Digest: digest.FromString("dir"), Size: 4096}
			if err := os.Mkdir(l.path(a.Digest), 0o755); err != nil {
				l.Fatal(err)
			}
			l.name(a, "a")
			return []string{show(a, "!!", "a")}
		}},
		"a FIFO": {make: func(l *testLayout) []string {
			a := v1.Descriptor{MediaType: image, Digest: digest.FromString("fifo"), Size: 0}
			if err := unix.Mkfifo(l.path(a.Digest), 0o644); err != nil {
				l.Fatal(err)
			}
			l.name(a, "a")
			return []string{show(a, "!!", "a")}
		}},
		"a link out of the layout": {make: func(l *testLayout) []string {
			a := l.image("a")
			elsewhere := filepath.Join(l.TempDir(), "blob")
			if err := os.Rename(l.path(a.Digest), elsewhere); err != nil {
				l.Fatal(err)
			}
			if err := os.Symlink(elsewhere, l.path(a.Digest)); err != nil {
				l.Fatal(err)
			}
			l.name(a, "a")
			return []string{show(a, "!!", "a")}
		}},
		"entries that are none": {make: func(l *testLayout) []string {
			a := l.image("a")
			l.entries = append(l.entries,
				nil, 1, "x", []int{}, map[string]any{},
				map[string]any{"mediaType": image, "digest": "sha256:../../x", "size": 1},
				map[string]any{"mediaType": image, "digest": "md5:d41d8cd98f00b204e9800998ecf8427e", "size": 1},
				map[string]any{"mediaType": image, "digest": a.Digest},
				map[string]any{"mediaType": image, "digest": a.Digest, "size": -1},
				map[string]any{"mediaType": image, "digest": a.Digest, "size": 1.5},
				map[string]any{"mediaType": 5, "digest": a.Digest, "size": 1},
				map[string]any{"mediaType": gzipLayer, "digest": a.Digest, "size": 1},
				map[string]any{"mediaType": image, "digest": a.Digest, "size": 1, "annotations": 7},
				map[string]any{"mediaType": image, "digest": a.Digest, "size": 1, "annotations": map[string]any{v1.AnnotationRefName: 7}},
			)
			l.name(a, "a")
			return []string{show(a, "", "a")}
		}, problems: 14},
		"sha512": {make: func(l *testLayout) []string {
			a := l.image("a")
			b, err := os.ReadFile(l.path(a.Digest))
			if err != nil {
				l.Fatal(err)
			}
			a = l.blobAs(image, b, digest.SHA512.FromBytes(b))
			l.name(a, "a")
			return []string{show(a, "", "a")}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			want := strings.Join(test.make(l), "\n")
			s := l.open()
			for range 2 { // the second time from what is known
				got := list(t, s)
				if shown(got) != want {
					t.Errorf("listed:\n%s\nwant:\n%s", shown(got), want)
				}
				if len(got.Problems) != test.problems {
					t.Errorf("%d problems, want %d: %v", len(got.Problems), test.problems, got.Problems)
				}
			}
			for _, img := range list(t, s).Images {
				exercise(t, img)
			}
		})
	}
}

// exercise calls all methods of an image that may be damaged: whatever they return, it is one of the conditions.
func exercise(t *testing.T, img imgsrc.Image) {
	t.Helper()
	_, err1 := img.Manifest(t.Context())
	_, err2 := img.Config(t.Context())
	_, err3 := img.Diff(t.Context(), 0)
	_, err4 := img.Blob(t.Context(), digest.FromString("x"))
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil && !errors.Is(err, imgsrc.ErrDamaged) && !errors.Is(err, imgsrc.ErrAbsent) && !errors.Is(err, imgsrc.ErrUnsupported) {
			t.Errorf("image %s: %v", img.Desc().ID, err)
		}
	}
	if d := img.Desc().Damaged; d != nil && !errors.Is(d, imgsrc.ErrDamaged) {
		t.Errorf("image %s: damaged by %v", img.Desc().ID, d)
	}
}

func TestID(t *testing.T) {
	l := newLayout(t)
	a := l.image("a")
	ix := l.nested(a)
	artifact := l.json(v1.MediaTypeImageManifest, v1.Manifest{
		MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/x-chart",
		Config: l.blob(v1.MediaTypeEmptyJSON, []byte("{}")),
	})
	docker := l.json("application/vnd.docker.distribution.manifest.v2+json", map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
		"config": l.blob("application/vnd.docker.container.image.v1+json", []byte(`{"rootfs":{"type":"layers"}}`)), "layers": []any{},
	})
	for _, d := range []v1.Descriptor{ix, artifact, docker} {
		d.MediaType = "" // the manifest knows
		l.add(d)
	}
	type row struct{ id, mediaType, config string }
	configOf := func(d v1.Descriptor) string {
		var m v1.Manifest
		b, err := os.ReadFile(l.path(d.Digest))
		if err != nil {
			t.Fatal(err)
		}
		unmarshal(t, b, &m)
		return m.Config.Digest.Encoded()
	}
	want := []row{
		{ix.Digest.Encoded(), v1.MediaTypeImageIndex, ""},
		{artifact.Digest.Encoded(), v1.MediaTypeImageManifest, configOf(artifact)},
		{configOf(docker), "application/vnd.docker.distribution.manifest.v2+json", configOf(docker)},
		{configOf(a), v1.MediaTypeImageManifest, configOf(a)},
	}
	for i, img := range list(t, l.open()).Images {
		d := img.Desc()
		got := row{d.ID, d.MediaType, strings.TrimPrefix(d.Config.String(), "sha256:")}
		if got != want[i] {
			t.Errorf("image %d: %v, want %v", i, got, want[i])
		}
	}
}

func TestRef(t *testing.T) {
	l := newLayout(t)
	a, b, c := l.image("a"), l.image("b"), l.image("c")
	ix := l.nested(c)
	l.name(a, "a")
	l.name(b, "b")
	l.name(a, "a2")
	l.name(ix, "ix")
	l.add(b, indexjson.NameContainerd, "docker.io/library/b:1", v1.AnnotationRefName, "1")
	for ref, want := range map[string][]string{
		"a":                     {show(a, "", "a", "a2")},
		"ix":                    {show(ix, "", "ix"), show(c, "")},
		"1":                     {show(b, "", "b", "docker.io/library/b:1")},
		"docker.io/library/b:1": {show(b, "", "b", "docker.io/library/b:1")},
	} {
		if got := shown(list(t, l.openRef(ref))); got != strings.Join(want, "\n") {
			t.Errorf("%s:\n%s\nwant:\n%s", ref, got, strings.Join(want, "\n"))
		}
	}
}

// A listing follows what happens to the manifests, also those that are repaired.
func TestListAgain(t *testing.T) {
	l := newLayout(t)
	a := l.image("a")
	l.name(a, "a")
	s := l.open()
	first := list(t, s)
	if again := list(t, s); again.Images[0].Image != first.Images[0].Image {
		t.Error("an unchanged manifest was read again")
	}
	b, err := os.ReadFile(l.path(a.Digest))
	if err := errors.Join(err, os.Remove(l.path(a.Digest))); err != nil {
		t.Fatal(err)
	}
	l.age()
	if got := shown(list(t, s)); got != show(a, "!!", "a") {
		t.Errorf("missing: %s", got)
	}
	stamp := s.Stamp()
	l.blob(a.MediaType, b)
	if s.Stamp() == stamp {
		t.Error("the stamp does not see that a missing manifest is there")
	}
	if got := shown(list(t, s)); got != show(a, "", "a") {
		t.Errorf("repaired: %s", got)
	}
	l.file(blobPath(a.Digest), strings.Replace(string(b), "linux", "LINUX", 1)+" ")
	if got := shown(list(t, s)); got != show(a, "!!", "a") {
		t.Errorf("edited: %s", got)
	}
}

// A platform that arrives is seen, although index.json stays as it is.
func TestSparseIndex(t *testing.T) {
	l := newLayout(t)
	a := l.image("a")
	ix := l.nested(a)
	l.name(ix, "ix")
	b, err := os.ReadFile(l.path(a.Digest))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(l.path(a.Digest)); err != nil {
		t.Fatal(err)
	}
	l.age()
	s := l.open()
	if got := shown(list(t, s)); got != show(ix, "", "ix") {
		t.Errorf("without the platform: %s", got)
	}
	stamp := s.Stamp()
	l.blob(a.MediaType, b)
	if s.Stamp() == stamp {
		t.Error("the stamp does not see that the platform is there")
	}
	if got, want := shown(list(t, s)), show(ix, "", "ix")+"\n"+show(a, ""); got != want {
		t.Errorf("with the platform: %s, want %s", got, want)
	}
}

// Whoever finds index.json half written waits for the rest.
func TestListWhileWritten(t *testing.T) {
	l := newLayout(t)
	a := l.image("a")
	l.name(a, "a")
	s := l.open()
	whole, err := os.ReadFile(filepath.Join(l.dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, len(whole) / 2, len(whole) - 1} {
		l.file("index.json", string(whole[:n]))
		done := make(chan string)
		go func() {
			got, err := s.List(t.Context())
			if err != nil {
				done <- err.Error()
				return
			}
			done <- shown(got)
		}()
		l.file("index.json", string(whole))
		if got := <-done; got != show(a, "", "a") {
			t.Errorf("cut at %d: %s", n, got)
		}
	}
}

func TestGone(t *testing.T) {
	l := newLayout(t)
	l.name(l.image("a"), "a")
	s := l.open()
	if err := os.RemoveAll(l.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(t.Context()); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	if s.Stamp() == "" {
		t.Error("no stamp")
	}
}

func BenchmarkList(b *testing.B) {
	l := newLayout(b)
	for i := range 1000 {
		d := l.image(fmt.Sprint(i))
		d.Annotations = map[string]string{v1.AnnotationRefName: fmt.Sprintf("image-%d", i)}
		l.entries = append(l.entries, d)
	}
	l.index()
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			if n := len(list(b, l.open()).Images); n != 1000 {
				b.Fatal(n)
			}
		}
	})
	b.Run("again", func(b *testing.B) {
		s := l.open()
		for b.Loop() {
			if n := len(list(b, s).Images); n != 1000 {
				b.Fatal(n)
			}
		}
	})
}
