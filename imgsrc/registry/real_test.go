package registry

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/needs"
)

// Images as umoci makes them and skopeo pushes them, to Debian's registry, in all formats: what skopeo says of them is
// what is listed, and what it copies is what is read.
func TestRealImages(t *testing.T) {
	needs.Programs(t, "umoci", "skopeo")
	srv := startDistribution(t, "")
	dir := t.TempDir()
	made := filepath.Join(dir, "made")
	needs.Run(t, "umoci", "init", "--layout", made)
	needs.Run(t, "umoci", "new", "--image", made+":base")
	for name, size := range map[string]int{"one": 200_000, "two": 3_000_000} {
		write(t, filepath.Join(dir, name), noise(size))
		needs.Run(t, "umoci", "insert", "--image", made+":base", filepath.Join(dir, name), "/srv/"+name)
	}
	host := srv.host
	push := func(tag string, args ...string) {
		args = append([]string{"copy", "--quiet", "--dest-tls-verify=false"}, args...)
		needs.Run(t, "skopeo", append(args, "docker://"+host+"/team/"+tag)...)
	}
	base := "oci:" + made + ":base"
	push("app:oci", "--format", "oci", base)
	push("app:v2s2", "--format", "v2s2", base)
	push("old:v2s1", "--format", "v2s1", base)
	o := newSetup(t, host)
	for _, mount := range []string{"first", "again"} {
		s := o.mustOpen(t)
		l := list(t, s)
		if len(l.Images) != 3 || len(l.Problems) != 0 {
			t.Fatalf("%s: %d images, %v", mount, len(l.Images), l.Problems)
		}
		for _, i := range l.Images {
			compare(t, i, "docker://"+i.RemoteNames[0])
		}
	}
}

// compare asks skopeo.
func compare(t *testing.T, i imgsrc.Listed, ref string) {
	t.Helper()
	d := i.Desc()
	if d.Damaged != nil {
		t.Errorf("%s: %v", ref, d.Damaged)
		return
	}
	var said struct {
		Digest digest.Digest
		Layers []digest.Digest
	}
	if err := json.Unmarshal([]byte(needs.Run(t, "skopeo", "inspect", "--tls-verify=false", ref)), &said); err != nil {
		t.Fatal(err)
	}
	if said.Digest != d.Digest {
		t.Errorf("%s is %s, and skopeo says %s", ref, d.Digest, said.Digest)
	}
	f, err := imgsrc.Load(t.Context(), i)
	if err != nil || f.ManifestErr != nil || f.Kind != imgsrc.KindImage {
		t.Errorf("%s: %v, %v", ref, err, f.ManifestErr)
		return
	}
	out := filepath.Join(t.TempDir(), "copy")
	needs.Run(t, "skopeo", "copy", "--quiet", "--src-tls-verify=false", ref, "dir:"+out)
	if strings.HasSuffix(ref, ":v2s1") {
		return // skopeo lists its layers in another order, with empty ones
	}
	raw, err := os.ReadFile(filepath.Join(out, "manifest.json"))
	if err != nil || string(raw) != string(f.Manifest) {
		t.Errorf("%s: another manifest than skopeo's: %v", ref, err)
	}
	for n, layer := range said.Layers {
		want, err := os.ReadFile(filepath.Join(out, layer.Encoded()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := readBlob(t, i.Image.(*image), f.Layers[n].Digest)
		if err != nil || string(got) != string(want) {
			t.Errorf("%s, layer %d: %d bytes, want %d, %v", ref, n, len(got), len(want), err)
		}
	}
}
