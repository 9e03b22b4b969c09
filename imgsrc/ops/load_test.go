package ops

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

func sameHandler(h http.Handler) http.Handler { return h }

// halfBlobs makes a registry stop after the first half of each blob, until the client has gone.
func halfBlobs(t *testing.T, stop bool) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !stop || r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/sha256:") {
				next.ServeHTTP(w, r)
				return
			}
			answer := httptest.NewRecorder()
			next.ServeHTTP(answer, r)
			body := answer.Body.Bytes()
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			_, _ = w.Write(body[:len(body)/2])
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
			case <-t.Context().Done():
			}
		})
	}
}

// slowReceiving takes its time before it is copied to, and when all bytes are there.
type slowReceiving struct {
	*receiving
	slow time.Duration
}

func (r *slowReceiving) Receive(ctx context.Context, name, id string, copy func(to types.ImageReference) error) error {
	time.Sleep(r.slow)
	return r.receiving.Receive(ctx, name, id, func(to types.ImageReference) error { return copy(&slowRef{to, r.slow}) })
}

type slowRef struct {
	types.ImageReference
	slow time.Duration
}

func (r *slowRef) NewImageDestination(ctx context.Context, sys *types.SystemContext) (types.ImageDestination, error) {
	dest, err := r.ImageReference.NewImageDestination(ctx, sys)
	return &slowDestination{dest, r.slow}, err
}

type slowDestination struct {
	types.ImageDestination
	slow time.Duration
}

func (d *slowDestination) PutBlob(ctx context.Context, stream io.Reader, info types.BlobInfo, cache types.BlobInfoCache, isConfig bool) (types.BlobInfo, error) {
	info, err := d.ImageDestination.PutBlob(ctx, stream, info, cache, isConfig)
	time.Sleep(d.slow)
	return info, err
}

func (d *slowDestination) Commit(ctx context.Context, top types.UnparsedImage) error {
	time.Sleep(d.slow)
	return d.ImageDestination.Commit(ctx, top)
}

// opens is an Options.Open that knows one place.
func opens(place string, src imgsrc.Source) func(context.Context, string) (imgsrc.Source, error) {
	return func(_ context.Context, asked string) (imgsrc.Source, error) {
		if asked != place {
			return nil, fail(imgsrc.ErrNoSource, "%s is nothing", asked)
		}
		return src, nil
	}
}

func TestLoad(t *testing.T) {
	images := testImages(t)
	one, two := images["oci with blobs"], smallImage(t)
	index := newIndex(t, one)
	index.desc.Lists = []digest.Digest{one.desc.Digest}
	listed := func(img *fakeImage, names ...string) imgsrc.Listed { return imgsrc.Listed{Image: img, Names: names} }
	bad := smallImage(t)
	bad.desc.Damaged = imgsrc.ErrDamaged
	unreadable := newImage(t, one.desc.MediaType, true, "unreadable", tarOf("f", noise(3000)))
	unreadable.read = func(context.Context, int64) error { return imgsrc.ErrDamaged }
	dir := t.TempDir()
	for _, test := range []struct {
		name   string
		images []imgsrc.Listed
		words  []string
		want   error
		names  []string
	}{
		{"one", []imgsrc.Listed{listed(one, "localhost/a:1")}, nil, nil, []string{"localhost/a:1"}},
		{"short name", []imgsrc.Listed{listed(one, "a")}, nil, nil, []string{"docker.io/library/a:latest"}}, // by the fake's rule
		{"no name", []imgsrc.Listed{listed(one)}, nil, nil, []string{one.desc.ID}},
		{"named", []imgsrc.Listed{listed(one, "localhost/a:1")}, []string{"name=localhost/b:2"}, nil, []string{"localhost/b:2"}},
		{"two", []imgsrc.Listed{listed(one, "localhost/a:1"), listed(two, "localhost/b:1")}, nil, nil, []string{"localhost/a:1", "localhost/b:1"}},
		{"two, named", []imgsrc.Listed{listed(one), listed(two)}, []string{"name=x"}, imgsrc.ErrInvalid, nil},
		{"no possible name", []imgsrc.Listed{listed(one, "A B")}, nil, nil, []string{one.desc.ID}},
		{"index", []imgsrc.Listed{listed(index, "localhost/i:1"), listed(one)}, nil, nil, []string{"localhost/i:1"}},
		{"index without a name", []imgsrc.Listed{listed(index), listed(one)}, nil, nil, []string{one.desc.ID}},
		{"none", nil, nil, imgsrc.ErrInvalid, nil},
		{"damaged", []imgsrc.Listed{listed(one, "localhost/a:1"), listed(bad, "localhost/b:1")}, nil, imgsrc.ErrDamaged, nil},
		{"damaged layer", []imgsrc.Listed{listed(one, "localhost/a:1"), listed(unreadable, "localhost/b:1")}, nil, imgsrc.ErrDamaged, nil},
		{"bad name", []imgsrc.Listed{listed(one)}, []string{"name=A B"}, imgsrc.ErrInvalid, nil},
	} {
		to := newReceiving(t)
		o, _ := newOpsOn(t, Options{Open: opens(dir, &fakeSource{name: "oci:" + dir, images: test.images})}, to)
		err := o.Do(t.Context(), request("load", append([]string{dir}, test.words...)...))
		if test.want == nil && err != nil || !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if !slices.Equal(to.names, test.names) || len(to.parts(t)) > 0 {
			t.Errorf("%s: %q arrived, and parts %q", test.name, to.names, to.parts(t))
		}
	}
}

// What is there already only gets names.
func TestLoadWhatIsThere(t *testing.T) {
	img := testImages(t)["oci with blobs"]
	to := newReceiving(t)
	to.images = []imgsrc.Listed{{Image: img, Names: []string{"localhost/old:1"}}}
	dir := t.TempDir()
	src := &fakeSource{name: "oci:" + dir, images: []imgsrc.Listed{{Image: img, Names: []string{"localhost/a:1", "localhost/b:1"}}}}
	o, _ := newOpsOn(t, Options{Open: opens(dir, src)}, to)
	if err := o.Do(t.Context(), request("load", dir)); err != nil {
		t.Fatal(err)
	}
	if want := []string{"localhost/old:1", "localhost/a:1", "localhost/b:1"}; !slices.Equal(to.images[0].Names, want) || len(to.names) > 0 {
		t.Errorf("names %q, want %q; arrived %q", to.images[0].Names, want, to.names)
	}
	if err := o.Do(t.Context(), request("load", dir)); err != nil || to.calls != 1 {
		t.Errorf("once more: %v; names were written %d times", err, to.calls)
	}
	o, _ = newOpsOn(t, Options{Open: opens(dir, src), SignaturePolicy: write(t, `{"default":[{"type":"reject"}]}`)}, to)
	if err := o.Do(t.Context(), request("load", dir)); !errors.Is(err, imgsrc.ErrDenied) {
		t.Errorf("in spite of the policy: %v", err)
	}
}

// Of several manifests of one config the one that is loaded gets the name.
func TestLoadSecondManifest(t *testing.T) {
	one := testImages(t)["oci with blobs"]
	two := *one
	two.manifest = append([]byte(" "), one.manifest...)
	two.desc.Digest, two.desc.Size = digest.FromBytes(two.manifest), int64(len(two.manifest))
	to := newReceiving(t)
	to.images = []imgsrc.Listed{{Image: one, Names: []string{"localhost/one:1"}}, {Image: &two, Names: []string{"localhost/two:1"}}}
	dir := t.TempDir()
	src := &fakeSource{name: "oci:" + dir, images: []imgsrc.Listed{{Image: &two, Names: []string{"localhost/a:1"}}}}
	o, _ := newOpsOn(t, Options{Open: opens(dir, src)}, to)
	if err := o.Do(t.Context(), request("load", dir)); err != nil || len(to.images[0].Names) != 1 || len(to.images[1].Names) != 2 {
		t.Errorf("%q and %q, %v", to.images[0].Names, to.images[1].Names, err)
	}
}

// Names that a loaded image does not get are a failure, which says that the image has come.
func TestLoadLosesNoName(t *testing.T) {
	img := testImages(t)["oci with blobs"]
	dir := t.TempDir()
	src := &fakeSource{name: "oci:" + dir, images: []imgsrc.Listed{{Image: img, Names: []string{"localhost/a:1", "localhost/b:1"}}}}
	full := errors.New("the disk is full")
	for name, test := range map[string]struct {
		there []imgsrc.Listed
		want  error
	}{
		"the listing lacks it":  {nil, imgsrc.ErrNotFound},
		"the names do not work": {[]imgsrc.Listed{{Image: img}}, full},
	} {
		to := newReceiving(t)
		to.images, to.err = test.there, fmt.Errorf("%w: %w", full, syscall.ENOSPC)
		o, _ := newOpsOn(t, Options{Open: opens(dir, src)}, to)
		err := o.Do(t.Context(), request("load", dir))
		if err == nil || test.want == full && !errors.Is(err, syscall.ENOSPC) || test.want != full && !errors.Is(err, test.want) {
			t.Fatalf("%s: %v", name, err)
		}
		if text, _ := o.LastError(""); !strings.Contains(text, "the image is there, but does not have localhost/") {
			t.Errorf("%s: %s", name, text)
		}
		events, _ := o.Events()
		if e := lastEvent(t, events); e.Type != "load-error" || e.Image != img.desc.ID || e.Error != err.Error() {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestImport(t *testing.T) {
	dir := t.TempDir()
	text := tarOf("etc/motd", []byte("hello\n"))
	for name, want := range map[string]string{
		"Root.tar": "localhost/root:latest", "root.tgz": "localhost/root:latest", "a b.tar.gz": "localhost/a-b:latest", "plain": "localhost/plain:latest",
	} {
		file := filepath.Join(dir, name)
		packed := text
		if strings.HasSuffix(name, "gz") {
			packed = gzipped(text)
		}
		if err := os.WriteFile(file, packed, 0o600); err != nil {
			t.Fatal(err)
		}
		to := newReceiving(t)
		o, _ := newOpsOn(t, Options{}, to)
		if err := o.Do(t.Context(), request("load", file)); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !slices.Equal(to.names, []string{want}) {
			t.Errorf("%s: %q arrived, want %q", name, to.names, want)
		}
		manifest, err := os.ReadFile(filepath.Join(to.dir, digest.FromString(want).Encoded(), "manifest.json"))
		if err != nil || !bytes.Contains(manifest, []byte(digest.FromBytes(text))) {
			t.Errorf("%s: %v, and the manifest does not name the tar: %s", name, err, manifest)
		}
		if events, _ := o.Events(); !bytes.Contains(events, []byte(`"type":"import"`)) {
			t.Errorf("%s: %s", name, events)
		}
	}
}

func TestFindRootfs(t *testing.T) {
	plain := tarOf("a", noise(2000))
	var noEnd bytes.Buffer
	w := tar.NewWriter(&noEnd)
	if err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 1024, Mode: 0o644}),
		func() error { _, err := w.Write(noise(1024)); return err }(), w.Flush()); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		text []byte
		root bool
		want error
	}{
		{"tar", plain, true, nil},
		{"gzip", gzipped(plain), true, nil},
		{"empty tar", make([]byte, 1024), true, nil},
		{"layout", tarOf("oci-layout", []byte("{}")), false, nil},
		{"docker save", tarOf("./manifest.json", []byte("[]")), false, nil},
		{"a manifest further down", tarOf("app/manifest.json", nil), true, nil},
		{"nothing", nil, false, imgsrc.ErrInvalid},
		{"text", []byte("hello\n"), false, imgsrc.ErrInvalid},
		{"longer text", bytes.Repeat([]byte("hello\n"), 1000), false, imgsrc.ErrInvalid},
		{"text, compressed", gzipped([]byte("hello\n")), false, imgsrc.ErrInvalid},
		{"cut in a file", plain[:1024], false, imgsrc.ErrDamaged},
		{"cut behind a file", noEnd.Bytes(), false, imgsrc.ErrDamaged},
		{"cut behind a file that ends like a tar", tarOf("a", make([]byte, 1024))[:1536], false, imgsrc.ErrDamaged},
		{"cut, compressed", gzipped(plain)[:1500], false, imgsrc.ErrDamaged},
		{"damaged further on", append(slices.Clone(noEnd.Bytes()), bytes.Repeat([]byte("x"), 1024)...), false, imgsrc.ErrDamaged},
	} {
		file := write(t, string(test.text))
		root, err := findRootfs(t.Context(), file)
		if test.want == nil && err != nil || !errors.Is(err, test.want) || (root != nil) != test.root {
			t.Errorf("%s: %+v, %v; want %v", test.name, root, err, test.want)
		}
		if err != nil && !strings.Contains(err.Error(), file) {
			t.Errorf("%s: the file is not named: %v", test.name, err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := findRootfs(gone, write(t, string(plain))); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of its context: %v", err)
	}
}

// The holes behind the end of a tar are not read to their end.
func TestRootfsInSparseFile(t *testing.T) {
	file := write(t, string(tarOf("a", []byte("x"))))
	if err := os.Truncate(file, 1<<40); err != nil {
		t.Fatal(err)
	}
	if root, err := findRootfs(t.Context(), file); root != nil || !errors.Is(err, imgsrc.ErrInvalid) || !strings.Contains(err.Error(), "its tar ends at byte") {
		t.Errorf("%+v, %v", root, err)
	}
}

func FuzzFindRootfs(f *testing.F) {
	f.Add(tarOf("a", []byte("x")))
	f.Add(gzipped(tarOf("manifest.json", []byte("[]"))))
	file := filepath.Join(f.TempDir(), "archive") // one for all: a directory for each takes most of the time
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		root, err := findRootfs(t.Context(), file)
		if err != nil && root != nil || root != nil && (root.size < tarBlock || root.diffID.Validate() != nil) {
			t.Errorf("%+v, %v", root, err)
		}
	})
}

func TestParseArrivals(t *testing.T) {
	registriesConf(t, "unqualified-search-registries = [\"a.example\", \"b.example:5000\"]\n[aliases]\n\"tool\" = \"alias.example/x/tool\"\n")
	o := New(Options{})
	here := func(path string) (string, error) { return filepath.Join("/here", path), nil }
	sha := "sha256:" + strings.Repeat("a", 64)
	for text, want := range map[string]string{
		"quay.io/a/b":                   "quay.io/a/b:latest",
		"quay.io/a/b:1":                 "quay.io/a/b:1",
		"quay.io/a/b:1@" + sha:          "quay.io/a/b@" + sha,
		"docker://a/b":                  "docker.io/a/b:latest",
		"docker.io/a":                   "docker.io/library/a:latest",
		"web":                           "a.example/web:latest b.example:5000/web:latest",
		"web:1":                         "a.example/web:1 b.example:5000/web:1",
		"web@" + sha:                    "a.example/web@" + sha + " b.example:5000/web@" + sha,
		"tool:2":                        "alias.example/x/tool:2",
		"oci:lay":                       "oci:/here/lay",
		"oci:lay:web:1":                 "oci:/here/lay:web:1",
		"docker-archive:x.tar":          "docker-archive:/here/x.tar",
		"docker-daemon:web:1":           "docker-daemon:web:1",
		"oci:1.0":                       "oci:/here/1.0", // a transport, as for podman
		"docker:x":                      "",
		"containers-storage:x":          "", // a transport, though not one to pull from
		"sif:1.0":                       "",
		"ostree:a@/b":                   "",
		"UPPER":                         "",
		"a b":                           "",
		"docker://ann:secret@quay.io/a": "",
		"":                              "",
	} {
		got := ""
		lines, err := o.parsePulls([][]string{{text}}, here)
		if err == nil {
			got = lines[0].place
			for i, named := range lines[0].candidates {
				if i > 0 {
					got += " "
				}
				got += named.String()
			}
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: credentials in %v", text, err)
		}
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
	for _, words := range []string{"x platform=linux", "x all=yes", "x dry-run=", "x wait", "x wait=true wait=true", "x name=y", "x creds=a:b", "x a:b=c@host"} {
		if _, err := o.parsePulls([][]string{strings.Fields(words)}, here); !errors.Is(err, imgsrc.ErrInvalid) || strings.Contains(err.Error(), "a:b") {
			t.Errorf("%q: %v", words, err)
		}
	}
	registriesConf(t, "unqualified-search-registries = [\"a.example\", \"b.example\"]\nshort-name-mode = \"enforcing\"\n")
	if _, err := o.parsePulls([][]string{{"web"}}, here); !errors.Is(err, imgsrc.ErrInvalid) || !strings.Contains(err.Error(), "a.example, b.example") {
		t.Errorf("enforcing: %v", err)
	}
	registriesConf(t, "")
	if lines, err := o.parsePulls([][]string{{"web"}}, here); err != nil || lines[0].candidates[0].String() != "docker.io/library/web:latest" {
		t.Errorf("a bare machine: %v, %v", lines, err)
	}
}

func TestNameOfFile(t *testing.T) {
	for base, want := range map[string]string{
		"debian-12.5.tar.xz": "debian-12.5", "a.tar": "a", "A.TGZ": "a", "x y.tar.zst": "x-y", "tar": "tar", "a.gz": "a", "é.tar": "", "+.tar": "", ".tar.gz": "",
		"a..b.tar": "", "rootfs": "rootfs", "-a-.tbz2": "a",
	} {
		got, err := nameOfFile(base)
		if want != "" {
			want = "localhost/" + want + ":latest"
		}
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v; want %q", base, got, err, want)
		}
	}
}
