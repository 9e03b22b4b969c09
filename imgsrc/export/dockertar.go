package export

import (
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// A DockerImage is what a docker-archive is made of.
type DockerImage struct {
	Config []byte    // the exact bytes: their digest stays the image's id
	Names  []string  // as the sources have them; those that are no references with a registry and a tag are left out
	Made   time.Time // the time of the archive's members
	Layers []DockerLayer
}

// A DockerLayer is a layer, as an uncompressed tar or compressed.
type DockerLayer struct {
	Digest digest.Digest // of these bytes
	Ending string        // of its name: ".tar" and what says the compression
	Size   int64
	Read   Reader
}

// DockerTar returns what docker save and podman save write: the config, each layer once, and manifest.json. That has the
// names, which may change, so it comes last: all before it stays where it is, for who is reading meanwhile.
func DockerTar(img *DockerImage) (*Archive, error) {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	a := &Archive{}
	made := headerTime(img.Made)
	e := entry{Config: digest.FromBytes(img.Config).Encoded() + ".json", RepoTags: tagged(img.Names), Layers: []string{}}
	a.file(e.Config, made, img.Config)
	there := map[digest.Digest]bool{}
	for _, l := range img.Layers {
		name := l.Digest.Encoded() + l.Ending
		e.Layers = append(e.Layers, name)
		if there[l.Digest] { // the same layer twice, as often an empty one is
			continue
		}
		there[l.Digest] = true
		a.body(name, made, l.Size, l.Read)
	}
	list, err := encode([]entry{e})
	if err != nil {
		return nil, fmt.Errorf("making manifest.json: %w", err)
	}
	a.file("manifest.json", made, list)
	if err := a.finish(); err != nil {
		return nil, err
	}
	return a, nil
}

// headerTime is a time as headers have it: 0 before 1970, or where there is none.
func headerTime(t time.Time) int64 { return min(max(0, t.Unix()), maxOctal11) }

// tagged are those of the names that a load can give: references with a registry and a tag.
func tagged(names []string) []string {
	all := []string{}
	for _, name := range names {
		if imgsrc.IsRemoteReference(name) && !strings.Contains(name, "@") {
			all = append(all, name)
		}
	}
	return all
}
