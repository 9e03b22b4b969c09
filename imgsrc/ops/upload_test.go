package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"

	"github.com/imgfs/imgfs/imgsrc"
	registrysource "github.com/imgfs/imgfs/imgsrc/registry"
	"github.com/imgfs/imgfs/test/servers"
)

// A counter stands in front of a registry and counts the bytes of blobs that are sent to it.
type counter struct {
	host string
	sent atomic.Int64
	wrap atomic.Pointer[func(w http.ResponseWriter, r *http.Request, next http.Handler)]
}

type countedBody struct {
	io.ReadCloser
	sent *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.sent.Add(int64(n))
	return n, err
}

func newCounter(t *testing.T, registry string) *counter {
	t.Helper()
	c := &counter{}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: registry})
			r.Out.Host = r.In.Host // the registry's links lead here
		},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/uploads/") {
			r.Body = &countedBody{r.Body, &c.sent}
		}
		if wrap := c.wrap.Load(); wrap != nil {
			(*wrap)(w, r, forward)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	c.host = strings.TrimPrefix(server.URL, "http://")
	return c
}

func (c *counter) front(wrap func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	if wrap == nil {
		c.wrap.Store(nil)
		return
	}
	c.wrap.Store(&wrap)
}

// mounting are options with which blobs are mounted.
func mounting(t *testing.T) Options {
	auth := write(t, "{}")
	return Options{AuthFile: auth, Registry: func(host, _ string, verify *bool) Mounter {
		return registrysource.NewClient(registrysource.Options{Ref: host, AuthFile: auth, TLSVerify: verify})
	}}
}

// What the registry has is not sent to it: in the same repository, in another one that the image's names tell or that it
// was pushed to, compressed or not.
func TestPushMounts(t *testing.T) {
	reg := newCounter(t, servers.Distribution(t, ""))
	layers := [][]byte{tarOf("f", noise(300_000)), tarOf("g", noise(400_000))}
	const most = 5000 // a config
	for name, mediaType := range map[string]string{"oci": imgspecv1.MediaTypeImageManifest, "docker": manifest.DockerV2Schema2MediaType} {
		whole := newImage(t, mediaType, true, name, layers...)
		bare := newImage(t, mediaType, false, name, layers...) // the same in a store
		for _, test := range []struct {
			name   string
			img    *fakeImage
			listed imgsrc.Listed
			to     []string
			least  []int64 // bytes of layers that are sent; 0: none
		}{
			{"by its names", whole, imgsrc.Listed{RemoteNames: []string{reg.host + "/" + name + "/first:1"}}, []string{name + "/second:1"}, []int64{0}},
			{"by its digests", whole, imgsrc.Listed{RepoDigests: []string{reg.host + "/" + name + "/first@" + string(whole.desc.Digest)}}, []string{name + "/third:1"}, []int64{0}},
			{"pulled into a store", bare, imgsrc.Listed{Names: []string{reg.host + "/" + name + "/first:1"}}, []string{name + "/fourth:1"}, []int64{0}},
			{"back to where it is from", bare, imgsrc.Listed{}, []string{name + "/first:again"}, []int64{0}},
			{"twice", whole, imgsrc.Listed{}, []string{name + "/fifth:1", name + "/fifth:2", name + "/sixth:1"}, []int64{700_000, 0, 0}},
			{"compressed twice", bare, imgsrc.Listed{}, []string{name + "/seventh:1", name + "/seventh:2", name + "/eighth:1"}, []int64{700_000, 0, 0}},
		} {
			t.Run(name+" "+test.name, func(t *testing.T) {
				first, _ := newOps(t, Options{}, whole)
				if err := first.Do(t.Context(), pushTo(whole, reg.host+"/"+name+"/first:1")); err != nil {
					t.Fatal(err)
				}
				test.listed.Image = test.img
				o, _ := newOpsOn(t, mounting(t), &fakeSource{name: "oci:/srv/fake", images: []imgsrc.Listed{test.listed}})
				for i, to := range test.to {
					before := reg.sent.Load()
					if err := o.Do(t.Context(), pushTo(test.img, reg.host+"/"+to)); err != nil {
						t.Fatal(err)
					}
					if sent := reg.sent.Load() - before; sent < test.least[i] || test.least[i] == 0 && sent > most {
						t.Errorf("%s: %d bytes were sent, want %d", to, sent, test.least[i])
					}
					m := inspect(t, "--tls-verify=false", "docker://"+reg.host+"/"+to)
					if m.Config.Digest != whole.desc.Config || test.img == whole && m.digest != whole.desc.Digest {
						t.Errorf("%s: %+v", to, m)
					}
				}
			})
		}
	}
}

// The layers of an image that another one was made from are not sent to the registry that this one was pulled from, and
// a repository that may not be read from is asked once.
func TestPushMountsBase(t *testing.T) {
	reg := newCounter(t, servers.Distribution(t, ""))
	layers := [][]byte{tarOf("f", noise(300_000)), tarOf("g", noise(400_000)), tarOf("h", noise(50_000))}
	base := newImage(t, imgspecv1.MediaTypeImageManifest, true, "base", layers[:2]...)
	first, _ := newOps(t, Options{}, base)
	if err := first.Do(t.Context(), pushTo(base, reg.host+"/base:1")); err != nil {
		t.Fatal(err)
	}
	stored := newImage(t, imgspecv1.MediaTypeImageManifest, false, "base", layers[:2]...)
	app := newImage(t, imgspecv1.MediaTypeImageManifest, false, "app", layers...)
	src := &fakeSource{name: "containers-storage:[overlay@/srv/root]", images: []imgsrc.Listed{
		{Image: stored, Unpacked: 1, Layers: []string{"1", "2"}, RepoDigests: []string{reg.host + "/base@" + string(stored.desc.Digest)}},
		{Image: app, Layers: []string{"1", "2", "3"}, Names: []string{"localhost/app:1"}},
	}}
	o, _ := newOpsOn(t, mounting(t), src)
	before := reg.sent.Load()
	if err := o.Do(t.Context(), pushTo(app, reg.host+"/app:1")); err != nil {
		t.Fatal(err)
	}
	if sent := reg.sent.Load() - before; sent < 50_000 || sent > 60_000 {
		t.Errorf("%d bytes were sent", sent)
	}
	if m := inspect(t, "--tls-verify=false", "docker://"+reg.host+"/app:1"); m.Config.Digest != app.desc.Config || len(m.Layers) != 3 {
		t.Errorf("%+v", m)
	}

	var asked atomic.Int32
	reg.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/base/blobs/") {
			asked.Add(1)
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
	o, _ = newOpsOn(t, mounting(t), src)
	if err := o.Do(t.Context(), pushTo(app, reg.host+"/denied:1")); err != nil {
		t.Error(err)
	}
	if n := asked.Load(); n > 4 { // several layers at a time
		t.Errorf("it was asked %d times", n)
	}
}

// A registry that is busy, or breaks connections, is tried again, a few times; what has arrived is not sent again.
func TestPushAgain(t *testing.T) {
	// Without compression, so that the layers come one by one and have digests.
	img := newImage(t, imgspecv1.MediaTypeImageManifest, true, "", tarOf("a", noise(300_000)), tarOf("b", noise(301_000)))
	status := func(code int) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	cut := func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.CopyN(io.Discard, r.Body, 10_000)
		panic(http.ErrAbortHandler)
	}
	for name, test := range map[string]struct {
		method string
		answer func(w http.ResponseWriter, r *http.Request)
		times  int32
		ok     bool
		text   string
	}{
		"503 of a layer":    {http.MethodPatch, status(503), 3, true, ""},
		"502 of a manifest": {http.MethodPut, status(502), 3, true, ""},
		"500 with a reason": {http.MethodPatch, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"errors":[{"code":"UNAVAILABLE"}]}`, http.StatusServiceUnavailable)
		}, 2, true, ""},
		"429 of a layer":           {http.MethodPatch, status(429), 1, true, ""},
		"a connection that is cut": {http.MethodPatch, cut, 3, true, ""},
		"always 503":               {http.MethodPatch, status(503), 1000, false, "(tried 4 times)"},
		"always cut":               {http.MethodPatch, cut, 1000, false, "(tried 4 times)"},
		"always 429":               {http.MethodPatch, status(429), 1000, false, "(tried 4 times)"},
		"501":                      {http.MethodPatch, status(501), 1, false, "501"},
		"403":                      {http.MethodPatch, status(403), 1, false, "podman login"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			registry := httptest.NewServer(servers.NewRegistry())
			t.Cleanup(registry.Close)
			reg := newCounter(t, strings.TrimPrefix(registry.URL, "http://"))
			var left atomic.Int32
			left.Store(test.times)
			reg.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Method == test.method && left.Add(-1) >= 0 {
					test.answer(w, r)
					return
				}
				next.ServeHTTP(w, r)
			})
			o, log := newOps(t, mounting(t), img)
			err := o.Do(t.Context(), pushTo(img, reg.host+"/web:1"))
			if (err == nil) != test.ok || err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v", err)
			}
			if n := strings.Count(log.String(), "\n"); test.ok && n != 0 || !test.ok && n != 1 {
				t.Errorf("log: %s", log)
			}
			if test.ok {
				if m := inspect(t, "--tls-verify=false", "docker://"+reg.host+"/web:1"); m.digest != img.desc.Digest {
					t.Errorf("%s, want %s", m.digest, img.desc.Digest)
				}
			}
		})
	}
}

// A registry that stops in the middle of a push is not waited for for long; a source that breaks, not at all.
func TestPushStops(t *testing.T) {
	img := newImage(t, imgspecv1.MediaTypeImageManifest, true, "", tarOf("a", noise(3_000_000)), tarOf("b", noise(3_001_000)))
	registry := httptest.NewServer(servers.NewRegistry())
	host := strings.TrimPrefix(registry.URL, "http://")
	var reads atomic.Int32
	img.read = func(context.Context, int64) error {
		if reads.Add(1) == 20 {
			registry.CloseClientConnections()
			registry.Listener.Close()
		}
		return nil
	}
	t.Cleanup(registry.Close)
	o, _ := newOps(t, Options{}, img)
	if err := o.Do(t.Context(), pushTo(img, host+"/web:1")); !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "(tried 4 times)") {
		t.Errorf("%v", err)
	}

	broken := newImage(t, imgspecv1.MediaTypeImageManifest, true, "", tarOf("a", noise(300_000)))
	var failed atomic.Int32
	broken.read = func(context.Context, int64) error {
		failed.Add(1)
		return fmt.Errorf("the disk is gone: %w", io.ErrUnexpectedEOF)
	}
	host = startEmbedded(t, func(h http.Handler) http.Handler { return h })
	o, _ = newOps(t, Options{}, broken)
	if err := o.Do(t.Context(), pushTo(broken, host+"/web:1")); err == nil || !strings.Contains(err.Error(), "the disk is gone") || strings.Contains(err.Error(), "tried") {
		t.Errorf("%v", err)
	}
	if n := failed.Load(); n > 3 {
		t.Errorf("a source that is broken was read %d times", n)
	}
}

// Of an index the platform's image is pushed, or all; what is missing is named before anything is sent.
func TestPushIndexPlatforms(t *testing.T) {
	var images []*fakeImage
	for _, name := range []string{"a", "b", "c"} {
		images = append(images, newImage(t, imgspecv1.MediaTypeImageManifest, true, name, tarOf(name, noise(1000))))
	}
	index := newIndex(t, images...) // amd64, arm64, s390x
	host := servers.Distribution(t, "")
	auth := write(t, "{}")
	for _, test := range []struct {
		platform imgsrc.Platform
		have     []*fakeImage
		words    []string
		want     error
		text     string
		digest   string
	}{
		{imgsrc.Platform{OS: "linux", Architecture: "arm64"}, images, nil, nil, "", string(images[1].desc.Digest)},
		{imgsrc.Platform{OS: "linux", Architecture: "amd64"}, images[:1], nil, nil, "", string(images[0].desc.Digest)},
		{imgsrc.Platform{OS: "linux", Architecture: "arm64"}, images[:1], nil, imgsrc.ErrNotFound, string(images[1].desc.Digest), ""},
		{imgsrc.Platform{OS: "linux", Architecture: "riscv64"}, images, nil, nil, "riscv64", ""},
		{imgsrc.Platform{}, images, []string{"all=true"}, nil, "", string(index.desc.Digest)},
		{imgsrc.Platform{}, images[:1], []string{"all=true"}, imgsrc.ErrNotFound, "2 of the index's 3 images are not in oci:/srv/fake: linux/arm64 (sha256:", ""},
	} {
		o, _ := newOps(t, Options{Platform: test.platform, AuthFile: auth}, append([]*fakeImage{index}, test.have...)...)
		err := o.Do(t.Context(), pushTo(index, append([]string{host + "/multi:1"}, test.words...)...))
		if test.digest == "" {
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v: %v, want %v: %s", test.platform, err, test.want, test.text)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v: %v", test.platform, err)
			continue
		}
		if m := inspect(t, "--tls-verify=false", "docker://"+host+"/multi:1"); string(m.digest) != test.digest {
			t.Errorf("%v: %s, want %s", test.platform, m.digest, test.digest)
		}
	}
}

func TestPushOffline(t *testing.T) {
	img := smallImage(t)
	o, _ := newOps(t, Options{Offline: true}, img)
	if err := o.Do(t.Context(), pushTo(img, "127.0.0.1:1/web:1")); !errors.Is(err, syscall.EHOSTUNREACH) || !strings.Contains(err.Error(), "offline") {
		t.Errorf("%v", err)
	}
	if err := o.Do(t.Context(), pushTo(img, "dir:"+t.TempDir()+"/x")); err != nil {
		t.Error(err)
	}
}

func TestKnownBlobs(t *testing.T) {
	k := &knownBlobs{}
	k.isIn("h", "a", "sha256:gz")
	k.isIn("h", "b", "sha256:gz")
	k.isIn("h", "a", "sha256:gz")
	k.isIn("other", "c", "sha256:gz")
	k.became("sha256:tar", "gzip", compressed{digest: "sha256:gz"})
	k.became("sha256:tar", "zstd", compressed{digest: "sha256:zst"})
	k.became("sha256:tar", "gzip", compressed{digest: "sha256:tar"})
	k.became("", "gzip", compressed{digest: "sha256:none"})
	if a, b, c := k.compressed("sha256:tar", "gzip"), k.compressed("sha256:tar", "zstd"), k.compressed("", "gzip"); a.digest != "sha256:gz" || b.digest != "sha256:zst" || c.digest != "" {
		t.Errorf("compressed: %s %s %s", a.digest, b.digest, c.digest)
	}
	if got := fmt.Sprint(k.places("h", "sha256:gz"), k.places("h", "sha256:none")); got != "[a b] []" {
		t.Errorf("places: %s", got)
	}
	for i := range maxFrom + 3 {
		k.isIn("h", fmt.Sprint(i), "sha256:many")
	}
	if got := k.places("h", "sha256:many"); len(got) != maxFrom {
		t.Errorf("places: %q", got)
	}
	for i := range maxKnown {
		k.isIn("h", "a", digest.Digest(fmt.Sprint(i)))
		k.became(digest.Digest(fmt.Sprint(i)), "gzip", compressed{digest: "sha256:gz"})
	}
	if n, m := len(k.repos), len(k.variants); n > maxKnown || m > maxKnown {
		t.Errorf("%d and %d blobs are remembered", n, m)
	}
}

// An image whose manifest names uncompressed layers stays as it is, unless that is only how a store keeps them.
func TestPushUncompressed(t *testing.T) {
	host := servers.Distribution(t, "")
	diff := tarOf("f", noise(10_000))
	img := newImage(t, imgspecv1.MediaTypeImageManifest, true, "", diff)
	d := digest.FromBytes(diff)
	img.blobs[d] = diff
	img.manifest = mustJSON(t, imgspecv1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspecv1.MediaTypeImageManifest,
		Config: imgspecv1.Descriptor{MediaType: imgspecv1.MediaTypeImageConfig, Digest: img.desc.Config, Size: int64(len(img.config))},
		Layers: []imgspecv1.Descriptor{{MediaType: imgspecv1.MediaTypeImageLayer, Digest: d, Size: int64(len(diff))}},
	})
	img.desc.Digest, img.desc.Size = digest.FromBytes(img.manifest), int64(len(img.manifest))
	for unpacked, want := range map[int64]string{0: imgspecv1.MediaTypeImageLayer, 1: imgspecv1.MediaTypeImageLayerGzip} {
		o, _ := newOpsOn(t, Options{}, &fakeSource{name: "oci:/srv/fake", images: []imgsrc.Listed{{Image: img, Unpacked: unpacked}}})
		to := fmt.Sprintf("%s/web%d:1", host, unpacked)
		if err := o.Do(t.Context(), pushTo(img, to)); err != nil {
			t.Fatal(err)
		}
		m := inspect(t, "--tls-verify=false", "docker://"+to)
		if m.Layers[0].MediaType != want || (m.digest == img.desc.Digest) != (unpacked == 0) {
			t.Errorf("unpacked %d: %+v", unpacked, m)
		}
	}
}
