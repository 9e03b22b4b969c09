package imgsrc

import (
	"fmt"
)

// Describe fills in what a manifest's bytes say of it, where they are kept by their digests: d holds the digest, and the
// media type that the source gives, if any. A manifest that cannot be read makes it Damaged. The facts that are returned
// are the manifest's alone.
func Describe(d *Desc, manifest []byte) *Facts {
	d.Size = int64(len(manifest))
	d.ID = d.Digest.Encoded()[:64] // of a longer hash than SHA-256 the beginning
	f := &Facts{Desc: *d, Manifest: manifest, ConfigErr: ErrAbsent}
	f.parse()
	if d.Damaged = f.ManifestErr; d.Damaged != nil {
		return f
	}
	d.MediaType, d.Subject = f.mediaType, f.Subject
	for _, c := range f.Children {
		d.Lists = append(d.Lists, c.Digest)
	}
	if f.config == nil { // schema 1, an index, the artifact manifests of old
		return f
	}
	if err := f.config.Digest.Validate(); err != nil {
		d.Damaged = fmt.Errorf("reading manifest %s: config %q: %w: %w", d.Digest, f.config.Digest, ErrDamaged, err)
		return f
	}
	d.Config = f.config.Digest
	if f.Kind == KindImage {
		d.ID = d.Config.Encoded()[:64]
	}
	return f
}

// ConfigSize is the config's size in bytes as the manifest says; -1 if it does not say, or names no config.
func (f *Facts) ConfigSize() int64 {
	if f.config == nil || f.config.Size == nil {
		return -1
	}
	return *f.config.Size
}

// ConfigType is the config's media type as the manifest says; empty if it does not say, or names no config.
func (f *Facts) ConfigType() string {
	if f.config == nil {
		return ""
	}
	return f.config.MediaType
}

// ManifestType is the manifest's media type: its own, else the source's, else the one whose fields it has.
func (f *Facts) ManifestType() string { return f.mediaType }
