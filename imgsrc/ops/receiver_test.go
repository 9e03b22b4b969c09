package ops

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/signature"
	libsigner "go.podman.io/image/v5/signature/signer"
	"go.podman.io/image/v5/signature/sigstore"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// receiving is a source that keeps each image that it receives as a directory of its own.
type receiving struct {
	*tagging
	dir     string
	refused error // of MayReceive
	names   []string
}

func newReceiving(t testing.TB) *receiving {
	return &receiving{tagging: &tagging{fakeSource: &fakeSource{name: "containers-storage:[overlay@/srv/root+/srv/run]"}}, dir: t.TempDir()}
}

func (r *receiving) MayReceive() error { return r.refused }

func (r *receiving) Receive(ctx context.Context, name, id string, copy func(to types.ImageReference) error) error {
	made, err := os.MkdirTemp(r.dir, "part-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(made)
	ref, err := directory.NewReference(made)
	if err != nil {
		return err
	}
	if err := copy(&emptied{ref, made}); err != nil {
		return err
	}
	if name == "" {
		name = id
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names = append(r.names, name)
	return os.Rename(made, filepath.Join(r.dir, digest.FromString(name).Encoded()))
}

// emptied is a directory in which a second attempt finds nothing of the first: dir: would not write into it.
type emptied struct {
	types.ImageReference
	dir string
}

func (e *emptied) NewImageDestination(ctx context.Context, sys *types.SystemContext) (types.ImageDestination, error) {
	if err := errors.Join(os.RemoveAll(e.dir), os.Mkdir(e.dir, 0o755)); err != nil {
		return nil, err
	}
	return e.ImageReference.NewImageDestination(ctx, sys)
}

// parts are what is left of images that did not come.
func (r *receiving) parts(t *testing.T) []string {
	t.Helper()
	parts, err := filepath.Glob(filepath.Join(r.dir, "part-*"))
	if err != nil {
		t.Fatal(err)
	}
	return parts
}

func request(control string, words ...string) Request {
	return Request{
		Control: control, Lines: [][]string{words}, Key: control + strings.Join(words, " "), UID: uint32(os.Getuid()), PID: uint32(os.Getpid()),
	}
}

// registriesConf makes the configuration of registries this text, for one test.
func registriesConf(t *testing.T, text string) {
	t.Helper()
	t.Setenv("CONTAINERS_REGISTRIES_CONF", write(t, text))
	t.Setenv("HOME", t.TempDir())
	sysregistriesv2.InvalidateCache()
	t.Cleanup(sysregistriesv2.InvalidateCache)
}

func TestPull(t *testing.T) {
	host := startEmbedded(t, sameHandler)
	registriesConf(t, "unqualified-search-registries = [\"127.0.0.1:1\", \""+host+"\"]\n")
	img := testImages(t)["oci with blobs"]
	o, _ := newOps(t, Options{}, img)
	for _, name := range []string{"team/web:1", "web:2"} {
		if err := o.Do(t.Context(), pushTo(img, host+"/"+name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		words []string
		names []string // that arrived
		want  error
		text  string // in the error
	}{
		{[]string{host + "/team/web:1"}, []string{host + "/team/web:1"}, nil, ""},
		{[]string{"docker://" + host + "/team/web:1"}, []string{host + "/team/web:1"}, nil, ""},
		{[]string{host + "/team/web@" + img.desc.Digest.String()}, []string{host + "/team/web@" + img.desc.Digest.String()}, nil, ""},
		{[]string{"web:2"}, []string{host + "/web:2"}, nil, ""},
		{[]string{host + "/team/web:1", "dry-run=true"}, nil, nil, ""},
		{[]string{host + "/team/web:3"}, nil, imgsrc.ErrNotFound, "check the name and the tag"},
		{[]string{host + "/team/web:3", "dry-run=true"}, nil, imgsrc.ErrNotFound, "team/web:3"},
		{[]string{"web:3"}, nil, nil, "none of 2 registries has it: 127.0.0.1:1/web:3: "},
		{[]string{"web:3"}, nil, nil, "connection refused (is a registry running at 127.0.0.1:1?); " + host + "/web:3: "},
		{[]string{"127.0.0.1:1/web:1"}, nil, nil, "is a registry running at 127.0.0.1:1?"},
		{[]string{host + "/team/web:1", "tls-verify=true"}, nil, nil, "tls-verify=false"},
	} {
		to := newReceiving(t)
		o, _ := newOpsOn(t, Options{}, &fakeSource{name: "dir:/srv/x"}, to)
		err := o.Do(t.Context(), request("pull", test.words...))
		if test.want != nil && !errors.Is(err, test.want) || (err != nil) != (test.want != nil || test.text != "") {
			t.Errorf("%q: %v", test.words, err)
		}
		if err != nil && (!strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "initializing source")) {
			t.Errorf("%q: %v; want in it %q", test.words, err, test.text)
		}
		if !slices.Equal(to.names, test.names) || len(to.parts(t)) > 0 {
			t.Errorf("%q: %q arrived, and parts %q", test.words, to.names, to.parts(t))
		}
		if text, _ := o.LastError(""); (text != "") != (err != nil) || err != nil && text != err.Error() {
			t.Errorf("%q: the last error is %q", test.words, text)
		}
	}
}

func TestPullNeedsReceiver(t *testing.T) {
	full := newReceiving(t)
	full.refused = imgsrc.ErrReadOnly
	for name, test := range map[string]struct {
		opt     Options
		sources []imgsrc.Source
		want    error
	}{
		"none":              {Options{}, []imgsrc.Source{&fakeSource{name: "dir:/srv/x"}}, imgsrc.ErrUnsupported},
		"one that does not": {Options{}, []imgsrc.Source{full}, imgsrc.ErrReadOnly},
		"read-only":         {Options{ReadOnly: true}, []imgsrc.Source{newReceiving(t)}, imgsrc.ErrReadOnly},
		"offline":           {Options{Offline: true}, []imgsrc.Source{newReceiving(t)}, syscall.EHOSTUNREACH},
		"the second":        {Options{}, []imgsrc.Source{full, newReceiving(t)}, nil},
	} {
		host := startEmbedded(t, sameHandler)
		img := smallImage(t)
		o, _ := newOps(t, Options{}, img)
		if err := o.Do(t.Context(), pushTo(img, host+"/web:1")); err != nil {
			t.Fatal(err)
		}
		o, _ = newOpsOn(t, test.opt, test.sources...)
		if err := o.Do(t.Context(), request("pull", host+"/web:1")); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

// A registry that stops in the middle of a layer is given up; one that has not been asked yet, or whose bytes are all here, is
// not, however long the store takes.
func TestPullFromSilentRegistry(t *testing.T) {
	const limit = 300 * time.Millisecond
	img := newImage(t, imgspecv1.MediaTypeImageManifest, true, "", tarOf("f", noise(200_000)))
	for _, test := range []struct {
		name string
		stop bool
		slow time.Duration // of the receiver
	}{{"stops", true, 0}, {"slow store", false, 3 * limit}} {
		host := startEmbedded(t, halfBlobs(t, test.stop))
		o, _ := newOps(t, Options{}, img)
		if err := o.Do(t.Context(), pushTo(img, host+"/web:1")); err != nil {
			t.Fatal(err)
		}
		to := &slowReceiving{newReceiving(t), test.slow}
		o, _ = newOpsOn(t, Options{Timeout: limit}, to)
		err := o.Do(t.Context(), request("pull", host+"/web:1"))
		if (err != nil) != test.stop || err != nil && !strings.Contains(err.Error(), "kept silent") {
			t.Errorf("%s: %v", test.name, err)
		}
		if parts := to.parts(t); len(parts) > 0 {
			t.Errorf("%s: parts are left: %q", test.name, parts)
		}
	}
}

func TestPolicyOfPulls(t *testing.T) {
	host := startEmbedded(t, sameHandler)
	registriesConf(t, "")
	img := smallImage(t)
	o, _ := newOps(t, Options{}, img)
	if err := o.Do(t.Context(), pushTo(img, host+"/open/web:1")); err != nil {
		t.Fatal(err)
	}
	keys := signSigstore(t, host, "/open/web:1", "/signed/web:1")
	policy := func(rule string) string {
		return write(t, `{"default":[{"type":"reject"}],"transports":{"docker":{"`+host+`/signed":[`+rule+`],"`+host+`/open":[{"type":"insecureAcceptAnything"}]}}}`)
	}
	sigstoreSigned := func(key string) string {
		return policy(`{"type":"sigstoreSigned","keyPath":"` + key + `","signedIdentity":{"type":"matchRepository"}}`)
	}
	for _, test := range []struct {
		name, policy, reference string
		want                    error
	}{
		{"open scope", policy(`{"type":"reject"}`), "/open/web:1", nil},
		{"rejected scope", policy(`{"type":"reject"}`), "/signed/web:1", imgsrc.ErrDenied},
		{"nothing there", policy(`{"type":"reject"}`), "/other/web:1", imgsrc.ErrNotFound},
		{"the right key", sigstoreSigned(keys[0]), "/signed/web:1", nil},
		{"a wrong key", sigstoreSigned(keys[1]), "/signed/web:1", imgsrc.ErrDenied},
		{"no policy that can be read", write(t, "{"), "/open/web:1", imgsrc.ErrDenied},
	} {
		for _, dry := range []string{"true", "false"} {
			to := newReceiving(t)
			o, _ := newOpsOn(t, Options{SignaturePolicy: test.policy}, to)
			err := o.Do(t.Context(), request("pull", host+test.reference, "dry-run="+dry))
			if test.want == nil && err != nil || !errors.Is(err, test.want) {
				t.Errorf("%s, dry-run=%s: %v, want %v", test.name, dry, err, test.want)
			}
			if want := err == nil && dry == "false"; (len(to.names) > 0) != want || len(to.parts(t)) > 0 {
				t.Errorf("%s, dry-run=%s: %q arrived, parts %q", test.name, dry, to.names, to.parts(t))
			}
		}
	}
}

// signSigstore copies an image with a signature by the first of two keys, and returns their public halves.
func signSigstore(t *testing.T, host, from, to string) (public []string) {
	t.Helper()
	dir := filepath.Join(os.Getenv("HOME"), ".config/containers/registries.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "test.yaml"), []byte("docker:\n  "+host+"/signed:\n    use-sigstore-attachments: true\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var signs []*libsigner.Signer
	for range 2 {
		pair, err := sigstore.GenerateKeyPair([]byte("pass"))
		if err != nil {
			t.Fatal(err)
		}
		public = append(public, write(t, string(pair.PublicKey)))
		s, err := sigstore.NewSigner(sigstore.WithPrivateKeyFile(write(t, string(pair.PrivateKey)), []byte("pass")))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		signs = append(signs, s)
	}
	accept, err := signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = accept.Destroy() }()
	reference := func(name string) types.ImageReference {
		ref, err := docker.ParseReference("//" + host + name)
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	sys := &types.SystemContext{DockerInsecureSkipTLSVerify: types.OptionalBoolTrue, BlobInfoCacheDir: os.DevNull, AuthFilePath: write(t, "{}")}
	_, err = copy.Image(t.Context(), accept, reference(to), reference(from), &copy.Options{SourceCtx: sys, DestinationCtx: sys, Signers: signs[:1]})
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// TestPullIsNotRetried: what is tried once is not told as tried again.
func TestPullIsNotRetried(t *testing.T) {
	o, _ := newOpsOn(t, Options{}, newReceiving(t))
	host := startEmbedded(t, func(h http.Handler) http.Handler { return h })
	if err := o.Do(t.Context(), request("pull", host+"/nothing:1")); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if j := jobOf(t, o, 1); j.Retries != 0 || j.State != taskFailed {
		t.Errorf("%+v", j)
	}
}

// TestPipesAreRefused: a job that waits for somebody to write into a pipe would never end.
func TestPipesAreRefused(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	opens := func(context.Context, string) (imgsrc.Source, error) { return nil, errors.New("it was opened") }
	o, _ := newOpsOn(t, Options{Open: opens}, newReceiving(t))
	for _, r := range []Request{
		request("pull", "dir:"+pipe), request("pull", "oci:"+pipe+":x"), request("pull", "docker-archive:"+pipe), request("load", pipe),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := o.Do(ctx, r); !errors.Is(err, imgsrc.ErrInvalid) || !strings.Contains(err.Error(), "neither a file nor a directory") {
			t.Errorf("%s %q: %v", r.Control, r.Lines, err)
		}
		cancel()
	}
}

func TestPullIsCancelled(t *testing.T) {
	host := startEmbedded(t, halfBlobs(t, true))
	img := newImage(t, imgspecv1.MediaTypeImageManifest, true, "", tarOf("f", noise(200_000)))
	o, _ := newOps(t, Options{}, img)
	if err := o.Do(t.Context(), pushTo(img, host+"/web:1")); err != nil {
		t.Fatal(err)
	}
	to := newReceiving(t)
	o, _ = newOpsOn(t, Options{}, to)
	if err := o.Do(t.Context(), request("pull", host+"/web:1", "wait=false")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for len(to.parts(t)) == 0 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if err := o.Close(ctx); err != nil {
		t.Error(err)
	}
	events, _ := o.Events()
	if !bytes.Contains(events, []byte(`"type":"pull-error"`)) || len(to.parts(t)) > 0 || len(to.names) > 0 {
		t.Errorf("parts %q, arrived %q, events %s", to.parts(t), to.names, events)
	}
}
