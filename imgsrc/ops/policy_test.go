package ops

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestPolicy(t *testing.T) {
	const reject = `{"default":[{"type":"reject"}]%s}`
	img := testImages(t)["oci with blobs"]
	for _, test := range []struct {
		transports string
		want       error
	}{
		{``, imgsrc.ErrDenied},
		{`,"transports":{"docker":{"":[{"type":"insecureAcceptAnything"}]}}`, imgsrc.ErrDenied},
		{`,"transports":{"oci":{"":[{"type":"insecureAcceptAnything"}]}}`, nil},
		{`,"transports":{"oci":{"/srv":[{"type":"insecureAcceptAnything"}]}}`, nil},
		{`,"transports":{"oci":{"/srv":[{"type":"insecureAcceptAnything"}],"/srv/fake":[{"type":"reject"}]}}`, imgsrc.ErrDenied},
	} {
		dir := t.TempDir()
		o, _ := newOps(t, Options{SignaturePolicy: write(t, strings.ReplaceAll(reject, "%s", test.transports))}, img)
		if err := o.Do(t.Context(), pushTo(img, "dir:"+dir+"/x")); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.transports, err, test.want)
		}
	}
	store := func(scope string) string {
		return write(t, strings.ReplaceAll(reject, "%s", `,"transports":{"containers-storage":{"`+scope+`":[{"type":"insecureAcceptAnything"}]}}`))
	}
	src := &fakeSource{name: "containers-storage:[overlay@/srv/root+/srv/run]", images: []imgsrc.Listed{{Image: img}}}
	for scope, want := range map[string]error{"": nil, "[overlay@/srv/root]": nil, "[/srv/root]": nil, "[vfs@/srv/root]": imgsrc.ErrDenied} {
		o, _ := newOpsOn(t, Options{SignaturePolicy: store(scope)}, src)
		if err := o.Do(t.Context(), pushTo(img, "dir:"+t.TempDir()+"/x")); !errors.Is(err, want) {
			t.Errorf("scope %q of a store: %v, want %v", scope, err, want)
		}
	}
	o, _ := newOps(t, Options{SignaturePolicy: write(t, "{")}, img)
	if err := o.Do(t.Context(), pushTo(img, "dir:"+t.TempDir()+"/x")); !errors.Is(err, imgsrc.ErrDenied) {
		t.Errorf("broken policy: %v", err)
	}
}

// TestPolicyNames: an image is what a policy calls it by any of its names, as it is to the tools that read it from there.
func TestPolicyNames(t *testing.T) {
	img := smallImage(t)
	held := imgsrc.Listed{Image: img, RemoteNames: []string{"good.test/a/app:1", "reg.test/a/app:1"}}
	untagged := imgsrc.Listed{Image: img, RepoDigests: []string{"reg.test/a/app@" + img.desc.Digest.String()}}
	stored := imgsrc.Listed{Image: img, Names: []string{"good.test/app:1", "reg.test/a/app:1"}}
	for _, test := range []struct {
		source    string
		held      imgsrc.Listed
		transport string
		scope     string
		want      error
	}{
		{"docker://reg.test", held, "docker", "reg.test", imgsrc.ErrDenied},
		{"docker://reg.test/a/app:1", held, "docker", "reg.test/a", imgsrc.ErrDenied},
		{"docker:", held, "docker", "reg.test/a/app:1", imgsrc.ErrDenied},
		{"docker:", held, "docker", "*.test", imgsrc.ErrDenied},
		{"docker:", held, "docker", "reg.test/b", nil},
		{"docker:", held, "docker", "", imgsrc.ErrDenied},
		{"docker://reg.test", untagged, "docker", "reg.test/a/app", imgsrc.ErrDenied},
		{"docker://reg.test/a/app", imgsrc.Listed{Image: img}, "docker", "reg.test/a/app", imgsrc.ErrDenied},
		{"docker-daemon:", stored, "docker-daemon", "reg.test/a", imgsrc.ErrDenied},
		{"docker-daemon:", stored, "docker-daemon", "reg.test/b", nil},
		{"containers-storage:[overlay@/srv/root+/srv/run]", stored, "containers-storage", "[overlay@/srv/root]reg.test/a", imgsrc.ErrDenied},
		{"containers-storage:[overlay@/srv/root+/srv/run]", stored, "containers-storage", "[overlay@/srv/root]reg.test/b", nil},
		{"oci:" + t.TempDir(), stored, "oci", "/no/such", nil},
	} {
		policy := fmt.Sprintf(`{"default":[{"type":"insecureAcceptAnything"}],"transports":{%q:{%q:[{"type":"reject"}]}}}`, test.transport, test.scope)
		src := &fakeSource{name: test.source, images: []imgsrc.Listed{test.held}}
		o, _ := newOpsOn(t, Options{SignaturePolicy: write(t, policy)}, src)
		if err := o.Do(t.Context(), pushTo(img, "dir:"+t.TempDir()+"/x")); !errors.Is(err, test.want) {
			t.Errorf("%s, rejected %s:%s: %v, want %v", test.source, test.transport, test.scope, err, test.want)
		}
	}
	kept := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(kept, link); err != nil {
		t.Fatal(err)
	}
	policy := fmt.Sprintf(`{"default":[{"type":"insecureAcceptAnything"}],"transports":{"oci":{%q:[{"type":"reject"}]}}}`, kept)
	o, _ := newOpsOn(t, Options{SignaturePolicy: write(t, policy)}, &fakeSource{name: "oci:" + link, images: []imgsrc.Listed{stored}})
	if err := o.Do(t.Context(), pushTo(img, "dir:"+t.TempDir()+"/x")); !errors.Is(err, imgsrc.ErrDenied) {
		t.Errorf("a layout behind a link: %v", err)
	}
}

// TestNoPolicy: a machine without a policy accepts everything, and one whose policy is missed nothing.
func TestNoPolicy(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("CONTAINERS_POLICY_JSON", "")
	o, log := newOps(t, Options{})
	bare := &types.SystemContext{RootForImplicitAbsolutePaths: t.TempDir()}
	for range 2 {
		policy, err := o.policyOf(bare)
		if err != nil {
			t.Fatalf("none: %v", err)
		}
		if err := policy.Destroy(); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(log.String(), "no signature policy"); n != 1 {
		t.Errorf("said %d times", n)
	}
	// A link to a policy that is gone is not the same as nothing. (The library looks once for where the user's is.)
	link := filepath.Join(bare.RootForImplicitAbsolutePaths, "etc/containers/policy.json")
	if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink("gone.json", link)); err != nil {
		t.Fatal(err)
	}
	if _, err := o.policyOf(bare); !errors.Is(err, imgsrc.ErrDenied) || !strings.Contains(err.Error(), link) {
		t.Errorf("a link that leads nowhere: %v", err)
	}
	t.Setenv("CONTAINERS_POLICY_JSON", filepath.Join(t.TempDir(), "policy.json"))
	if _, err := o.policyOf(bare); !errors.Is(err, imgsrc.ErrDenied) {
		t.Errorf("one that is named and not there: %v", err)
	}
}

// TestPolicyOfMembers: an image of an index is judged by the index's scopes, and one that another source has by its own.
func TestPolicyOfMembers(t *testing.T) {
	one := newImage(t, imgspecv1.MediaTypeImageManifest, true, "one", tarOf("f", noise(1000)))
	two := newImage(t, imgspecv1.MediaTypeImageManifest, true, "two", tarOf("f", noise(1001)))
	index := newIndex(t, one, two) // amd64, arm64
	src := &fakeSource{name: "oci:/srv/fake", images: []imgsrc.Listed{{Image: index}, {Image: one}}}
	other := &fakeSource{name: "dir:/srv/other", images: []imgsrc.Listed{{Image: two}}}
	open, closed := `[{"type":"insecureAcceptAnything"}]`, `[{"type":"reject"}]`
	for _, test := range []struct {
		dir, arch string
		words     []string
		want      error
	}{
		{open, "amd64", []string{"all=true"}, nil},
		{closed, "amd64", []string{"all=true"}, imgsrc.ErrDenied},
		{closed, "amd64", nil, nil}, // the other one is not copied
		{closed, "arm64", nil, imgsrc.ErrDenied},
		{open, "arm64", nil, nil},
	} {
		policy := write(t, `{"default":`+open+`,"transports":{"dir":{"":`+test.dir+`}}}`)
		o, _ := newOpsOn(t, Options{SignaturePolicy: policy, Platform: imgsrc.Platform{OS: "linux", Architecture: test.arch}}, src, other)
		err := o.Do(t.Context(), pushTo(index, append([]string{"oci:" + t.TempDir() + "/x:1"}, test.words...)...))
		if test.want == nil && err != nil || !errors.Is(err, test.want) {
			t.Errorf("%s, %s %s: %v, want %v", test.dir, test.arch, test.words, err, test.want)
		}
	}
}
