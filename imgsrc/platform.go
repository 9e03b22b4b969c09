package imgsrc

import (
	"encoding/json"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// A Platform is what an image runs on, in Go's words for systems and processors (linux, arm64).
type Platform struct {
	OS           string   `json:"os,omitempty"`
	Architecture string   `json:"architecture,omitempty"`
	Variant      string   `json:"variant,omitempty"`
	OSVersion    string   `json:"os.version,omitempty"`
	OSFeatures   []string `json:"os.features,omitempty"`
}

// HostPlatform is what this program runs on.
func HostPlatform() Platform {
	return Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
}

var platformPart = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// ParsePlatform reads "os/architecture" or "os/architecture/variant". Error: ErrInvalid.
func ParsePlatform(s string) (Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.ContainsFunc(parts, func(p string) bool { return !platformPart.MatchString(p) }) {
		return Platform{}, Of(ErrInvalid, fmt.Errorf("%q is not a platform: write os/architecture or os/architecture/variant, as in linux/arm64", s))
	}
	p := Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// variantsBelow are the variants of an architecture, each running what is made for those behind it.
var variantsBelow = map[string][]string{
	"arm":   {"v8", "v7", "v6", "v5"},
	"arm64": {"v8"},
}

// variants are those whose images run on p, the best one first.
func (p Platform) variants() []string {
	all := variantsBelow[p.Architecture]
	if p.Variant == "" {
		return append([]string{""}, all...)
	}
	if i := slices.Index(all, p.Variant); i >= 0 {
		return append(slices.Clone(all[i:]), "")
	}
	return []string{p.Variant, ""}
}

// Runs says whether an image for another platform runs on p. What one of them does not say is no difference.
func (p Platform) Runs(image Platform) bool {
	same := func(a, b string) bool { return a == "" || b == "" || a == b }
	return same(p.OS, image.OS) && same(p.Architecture, image.Architecture) && (p.Variant == "" || slices.Contains(p.variants(), image.Variant))
}

// String is "os/architecture" or "os/architecture/variant".
func (p Platform) String() string {
	text := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		text += "/" + p.Variant
	}
	return text
}

// A Child is one entry of an index.
type Child struct {
	Digest       digest.Digest
	MediaType    string
	Size         int64 // bytes; -1 if the index does not say
	Platform     *Platform
	ArtifactType string
	Annotations  map[string]string

	// Name is the entry's file name: its platform, os-architecture or os-architecture-variant, with "@" and twelve digits
	// of its digest appended where an earlier entry has that name; its digest if it names no platform. Empty if it only
	// says again what an earlier entry says.
	Name string
}

func (f *Facts) parseIndex(doc manifestDoc) error {
	list, err := decodeList[json.RawMessage](doc.Manifests)
	if err != nil {
		return fmt.Errorf("manifests: %w", err)
	}
	taken := map[string]bool{}
	for _, raw := range list {
		var d struct {
			descriptor
			Platform     *Platform `json:"platform"`
			ArtifactType string    `json:"artifactType"`
		}
		if json.Unmarshal(raw, &d) != nil || checkDigest(d.Digest) != nil {
			continue
		}
		size, err := d.size()
		if err != nil {
			continue
		}
		c := Child{Digest: d.Digest, MediaType: d.MediaType, Size: size, Platform: d.Platform, ArtifactType: d.ArtifactType, Annotations: d.Annotations}
		for _, name := range c.names() {
			if len(name) <= maxName && !taken[name] {
				c.Name, taken[name] = name, true
				break
			}
		}
		f.Children = append(f.Children, c)
	}
	return nil
}

// names are the names that the entry may have, the best one first.
func (c *Child) names() []string {
	plain := strings.ReplaceAll(string(c.Digest), ":", "-")
	if c.Platform == nil || c.Platform.OS == "" && c.Platform.Architecture == "" {
		return []string{plain}
	}
	name := c.Platform.OS + "-" + c.Platform.Architecture
	if c.Platform.Variant != "" {
		name += "-" + c.Platform.Variant
	}
	name, ok := EscapeKey(name)
	if !ok {
		return []string{plain}
	}
	hex := c.Digest.Encoded()
	return []string{name, name + "@" + hex[:min(12, len(hex))]}
}

// Choose returns the index's entry for a platform, as podman chooses it: of the best variant that runs there the first, and if
// no entry names such a platform the first that names none. Nil if there is none.
func Choose(children []Child, p Platform) *Child {
	for _, variant := range p.variants() {
		for i := range children {
			c := &children[i]
			if c.Name != "" && c.Platform != nil && c.Platform.OS == p.OS && c.Platform.Architecture == p.Architecture && c.Platform.Variant == variant {
				return c
			}
		}
	}
	for i := range children {
		if children[i].Name != "" && children[i].Platform == nil {
			return &children[i]
		}
	}
	return nil
}
