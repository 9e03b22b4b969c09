package ops

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/signature/sigstore"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/needs"
)

const signerName = "signer@example.org"

// gpgHome makes a keyring with a key of signerName and one of locked@example.org that has a passphrase, and returns the
// file with the first one's public key.
func gpgHome(t *testing.T) (public string) {
	t.Helper()
	needs.Programs(t, "gpg", "gpg-agent")
	home, err := os.MkdirTemp("", "gpg") // the path of its socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GNUPGHOME", home)
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		_ = os.RemoveAll(home)
	})
	launchAgent(t, home)
	for name, passphrase := range map[string]string{signerName: "", "locked@example.org": "s3cret"} {
		needs.Run(t, "gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", passphrase, "--quick-gen-key", name, "default", "default", "never")
	}
	needs.Run(t, "gpgconf", "--homedir", home, "--kill", "gpg-agent") // which knows the passphrase
	launchAgent(t, home)
	public = filepath.Join(home, "public")
	needs.Run(t, "gpg", "--batch", "--output", public, "--export", signerName)
	return public
}

// launchAgent returns when there is an agent. gpg starts one itself, and waits for it no longer than five seconds.
func launchAgent(t *testing.T, home string) {
	t.Helper()
	var out []byte
	var err error
	for range 10 {
		if out, err = exec.Command("gpgconf", "--homedir", home, "--launch", "gpg-agent").CombinedOutput(); err == nil {
			return
		}
	}
	t.Fatalf("gpg-agent: %v: %s", err, out)
}

// policyFor is a policy.json that lets only what is signed through, by a requirement on the transport.
func policyFor(t *testing.T, transport, requirement string) string {
	t.Helper()
	return write(t, fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{%q:{"":[%s]}}}`, transport, requirement))
}

func TestSignDir(t *testing.T) {
	needs.Programs(t, "skopeo")
	public := gpgHome(t)
	whole := newImage(t, imgspecv1.MediaTypeImageManifest, true, "a", tarOf("f", noise(1000)))
	other := newImage(t, imgspecv1.MediaTypeImageManifest, false, "b", tarOf("g", noise(1000)))
	index := newIndex(t, whole, other)
	policy := policyFor(t, "dir", fmt.Sprintf(
		`{"type":"signedBy","keyType":"GPGKeys","keyPath":%q,"signedIdentity":{"type":"exactReference","dockerReference":"registry.test/web:1"}}`, public))
	for name, test := range map[string]struct {
		img   *fakeImage
		words []string
		files int // signatures
	}{
		"whole":      {whole, nil, 1},
		"compressed": {other, []string{"compression=gzip"}, 1},
		"index":      {index, []string{"all=true"}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			src := &fakeSource{name: "oci:/srv/fake", images: []imgsrc.Listed{{Image: whole}, {Image: other}, {Image: index}}}
			for i := range src.images {
				if src.images[i].Image == imgsrc.Image(test.img) {
					src.images[i].Names = []string{"odd", "registry.test/web:1"}
				}
			}
			o, _ := newOpsOn(t, Options{}, src)
			dir := filepath.Join(t.TempDir(), "d")
			if err := o.Do(t.Context(), pushTo(test.img, append([]string{"dir:" + dir, "sign-by=" + signerName}, test.words...)...)); err != nil {
				t.Fatal(err)
			}
			if files, _ := filepath.Glob(dir + "/*signature-*"); len(files) != test.files {
				t.Errorf("signatures %q, want %d", files, test.files)
			}
			if test.img == index {
				return
			}
			needs.Run(t, "skopeo", "--policy", policy, "copy", "dir:"+dir, "dir:"+filepath.Join(t.TempDir(), "copy"))
			// The signature is of these bytes.
			manifest := filepath.Join(dir, "manifest.json")
			text, err := os.ReadFile(manifest)
			if err == nil {
				err = os.WriteFile(manifest, append(text, '\n'), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("skopeo", "--policy", policy, "copy", "dir:"+dir, "dir:"+filepath.Join(t.TempDir(), "bad")).CombinedOutput(); err == nil {
				t.Errorf("another manifest is accepted: %s", out)
			}
		})
	}
}

func TestSignFails(t *testing.T) {
	gpgHome(t)
	img := smallImage(t)
	named := &fakeSource{name: "oci:/srv/fake", images: []imgsrc.Listed{{Image: img, Names: []string{"registry.test/web:1"}}}}
	unnamed := &fakeSource{name: "oci:/srv/fake", images: []imgsrc.Listed{{Image: img, Names: []string{"latest"}}}}
	slow := t.TempDir()
	for dir, script := range map[string]string{slow: "exec sleep 1000", slow + "/rude": "echo 'gpg: the moon is full' >&2; exit 2"} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(dir+"/gpg", []byte("#!/bin/sh\n"+script+"\n"), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	path := os.Getenv("PATH")
	for name, test := range map[string]struct {
		src  *fakeSource
		key  string
		path string
		want error
		text string
	}{
		"no such key":   {named, "nobody@example.org", path, imgsrc.ErrNotFound, "gpg has no such secret key"},
		"an option":     {named, "--version", path, imgsrc.ErrNotFound, "gpg has no such secret key"},
		"a passphrase":  {named, "locked@example.org", path, imgsrc.ErrDenied, "has a passphrase"},
		"no gpg":        {named, signerName, t.TempDir(), imgsrc.ErrUnsupported, "there is no gpg"},
		"no reference":  {unnamed, signerName, path, imgsrc.ErrInvalid, "no reference to sign"},
		"another error": {named, signerName, slow + "/rude:" + path, nil, "gpg: the moon is full"},
		"no such file":  {named, "sigstore:" + slow + "/none", path, syscall.ENOENT, "none"},
		"no key at all": {named, "sigstore:" + slow + "/gpg", path, nil, "private key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PATH", test.path)
			o, _ := newOpsOn(t, Options{}, test.src)
			dir := t.TempDir()
			err := o.Do(t.Context(), pushTo(img, "dir:"+dir+"/d", "sign-by="+test.key))
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "podman login") {
				t.Errorf("%v, want %v: %s", err, test.want, test.text)
			}
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				t.Errorf("left %v", entries)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		t.Setenv("PATH", slow+":"+path)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		began := time.Now()
		if _, err := newGPG(ctx, signerName); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 10*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// allowed asks the library whether a policy lets the image in a directory through: Debian's skopeo is built without this
// kind of signatures.
func allowed(t *testing.T, policy, dir string, want bool) {
	t.Helper()
	parsed, err := signature.NewPolicyFromFile(policy)
	if err != nil {
		t.Fatal(err)
	}
	checks, err := signature.NewPolicyContext(parsed)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = checks.Destroy() }()
	ref, err := directory.NewReference(dir)
	if err != nil {
		t.Fatal(err)
	}
	src, err := ref.NewImageSource(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if ok, err := checks.IsRunningImageAllowed(t.Context(), image.UnparsedInstance(src, nil)); ok != want {
		t.Errorf("allowed: %v, %v, want %v", ok, err, want)
	}
}

func TestSignSigstore(t *testing.T) {
	dir := t.TempDir()
	for name, passphrase := range map[string]string{"open": "", "locked": "s3cret"} {
		keys, err := sigstore.GenerateKeyPair([]byte(passphrase))
		if err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string][]byte{name + ".key": keys.PrivateKey, name + ".pub": keys.PublicKey} {
			if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	img := newImage(t, imgspecv1.MediaTypeImageManifest, true, "a", tarOf("f", noise(1000)))
	src := &fakeSource{name: "oci:/srv/fake", images: []imgsrc.Listed{{Image: img, Names: []string{"registry.test/web:1"}}}}
	o, _ := newOpsOn(t, Options{}, src)
	if err := o.Do(t.Context(), pushTo(img, "dir:"+dir+"/d", "sign-by=sigstore:"+dir+"/open.key")); err != nil {
		t.Fatal(err)
	}
	policy := policyFor(t, "dir", fmt.Sprintf(
		`{"type":"sigstoreSigned","keyPath":%q,"signedIdentity":{"type":"exactReference","dockerReference":"registry.test/web:1"}}`, dir+"/open.pub"))
	allowed(t, policy, dir+"/d", true)
	text, err := os.ReadFile(policy)
	if err != nil {
		t.Fatal(err)
	}
	allowed(t, write(t, strings.ReplaceAll(string(text), "open.pub", "locked.pub")), dir+"/d", false)
	err = o.Do(t.Context(), pushTo(img, "dir:"+dir+"/e", "sign-by=sigstore:"+dir+"/locked.key"))
	if !errors.Is(err, imgsrc.ErrDenied) || !strings.Contains(err.Error(), "passphrase") {
		t.Errorf("%v", err)
	}
}
