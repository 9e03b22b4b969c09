package ops

import (
	"bytes"
	"testing"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"

	"github.com/imgfs/imgfs/test/needs"
	"github.com/imgfs/imgfs/test/servers"
)

// Docker's engine with the containerd image store: an OCI manifest, layers under Docker's media types, of which only the
// tars are kept, and a listing that does not know the config.
func TestPushDockerTypesInOCI(t *testing.T) {
	needs.Programs(t, "skopeo", "docker-registry")
	host := servers.Distribution(t, "")
	for name, blobs := range map[string]bool{"blobs": true, "tars": false} {
		for _, keys := range []string{"", "compression=zstd"} {
			t.Run(name+" "+keys, func(t *testing.T) {
				img := newImage(t, imgspecv1.MediaTypeImageManifest, blobs, name, []byte("one"), []byte("two"))
				img.manifest = bytes.ReplaceAll(img.manifest, []byte(imgspecv1.MediaTypeImageLayerGzip), []byte(manifest.DockerV2Schema2LayerMediaType))
				img.desc.Digest, img.desc.Size = digest.FromBytes(img.manifest), int64(len(img.manifest))
				config := img.desc.Config
				img.desc.Config = ""
				o, _ := newOps(t, Options{}, img)
				dir := t.TempDir()
				for dest, from := range map[string][]string{
					host + "/web:1":                     {"--tls-verify=false", "docker://" + host + "/web:1"},
					"oci:" + dir + "/l:web":             {"oci:" + dir + "/l:web"},
					"dir:" + dir + "/d":                 {"dir:" + dir + "/d"},
					"oci-archive:" + dir + "/a.tar:web": {"oci-archive:" + dir + "/a.tar:web"},
				} {
					r := pushTo(img, dest)
					if keys != "" && dest[:4] != "dir:" {
						r.Lines[0] = append(r.Lines[0], keys)
					}
					if err := o.Do(t.Context(), r); err != nil {
						t.Error(err)
						continue
					}
					m := inspect(t, from...)
					if m.Config.Digest != config {
						t.Errorf("%s: config %s, image's is %s", dest, m.Config.Digest, config)
					}
					if same := m.digest == img.desc.Digest; same != (blobs && keys == "") && dest[:4] != "dir:" {
						t.Errorf("%s: the manifest is the image's: %v", dest, same)
					}
				}
			})
		}
	}
}
