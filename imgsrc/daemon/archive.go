package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// Bounds of a saved image.
const (
	maxNames     = 64 << 20 // bytes of all names: a tar may give each a MiB
	maxManifests = 100_000  // that are looked at for one
	// A compressed layer may expand to freeExpansion bytes, beyond that to maxRatio times its own.
	freeExpansion = 16 << 30
	maxRatio      = 500
)

// An archive is what "docker save" makes of one image: a tar whose manifest.json names the config and the layers. Before
// Docker 25 these are <id>.json and <layer>/layer.tar, and a layer that is there already is a link; since then they are
// blobs of an OCI layout. Layers are uncompressed, or as they were pulled if the engine has the containerd image store.
type archive struct {
	r       io.ReaderAt
	members *blobs.Members
}

// readArchive reads the headers. Error: imgsrc.ErrDamaged, or r's.
func readArchive(ctx context.Context, r io.ReaderAt, size int64) (*archive, error) {
	m, err := blobs.ReadMembers(ctx, r, "what the engine sent", size, maxNames)
	switch {
	case errors.Is(err, imgsrc.ErrUnsupported):
		return nil, fmt.Errorf("%w: %w", imgsrc.ErrDamaged, err)
	case err != nil:
		return nil, err
	case m.Err != nil:
		return nil, fmt.Errorf("%w: what the engine sent is not a tar: %w", imgsrc.ErrDamaged, m.Err)
	case m.Len() == 0:
		return nil, fmt.Errorf("%w: what the engine sent is not a tar: %w", imgsrc.ErrDamaged, io.ErrUnexpectedEOF)
	}
	return &archive{r, m}, nil
}

// find returns where a file lies, also through links. Error: imgsrc.ErrDamaged.
func (a *archive) find(name string) (blobs.Place, error) {
	at, err := a.members.Find(name)
	if err != nil { // not what it wraps: a layer that is missing here is not one that may come yet
		err = fmt.Errorf("%w: the engine's archive has no %s", imgsrc.ErrDamaged, name)
	}
	return at, err
}

// read returns a small file.
func (a *archive) read(name string) ([]byte, error) {
	at, err := a.find(name)
	switch {
	case err != nil:
		return nil, err
	case at.Size > imgsrc.MaxManifest:
		return nil, fmt.Errorf("%w: %s has %d bytes, more than %d", imgsrc.ErrDamaged, name, at.Size, imgsrc.MaxManifest)
	}
	b := make([]byte, at.Size)
	if _, err := a.r.ReadAt(b, at.Off); err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}

// readJSON reads a small file into v.
func (a *archive) readJSON(name string, v any) error {
	b, err := a.read(name)
	if err == nil {
		if err = json.Unmarshal(b, v); err != nil {
			err = fmt.Errorf("%w: %s: %w", imgsrc.ErrDamaged, name, err)
		}
	}
	return err
}

// A part is one layer of an archive.
type part struct {
	archive *archive
	place   blobs.Place
	plain   bool // not compressed
}

// image returns what the archive says of the one image in it, and its layers by their diff ids.
func (a *archive) image(ctx context.Context, id string) (*document, map[digest.Digest]part, error) {
	var items []struct {
		Config string
		Layers []string
	}
	if err := a.readJSON("manifest.json", &items); err != nil {
		return nil, nil, err
	}
	if len(items) != 1 {
		return nil, nil, fmt.Errorf("%w: manifest.json has %d images, and one was asked for", imgsrc.ErrDamaged, len(items))
	}
	config, err := a.read(items[0].Config)
	if err != nil {
		return nil, nil, err
	}
	var stored []byte
	if !isConfigOf(id, config) {
		if stored, err = a.stored(id, digest.FromBytes(config)); err != nil {
			return nil, nil, err
		}
	}
	ids, err := diffIDsOf(config)
	if err != nil {
		return nil, nil, err
	}
	if len(ids) != len(items[0].Layers) {
		return nil, nil, fmt.Errorf("%w: %d layers, and the config has %d diff ids", imgsrc.ErrDamaged, len(items[0].Layers), len(ids))
	}
	parts, sizes := map[digest.Digest]part{}, make([]int64, len(ids))
	for n, name := range items[0].Layers {
		p, err := a.part(name)
		if err == nil {
			sizes[n], err = p.size(ctx)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("layer %d: %w", n, err)
		}
		if _, ok := parts[ids[n]]; !ok {
			parts[ids[n]] = p
		}
	}
	if stored != nil {
		d, err := storedDocument(stored, config, ids, sizes)
		return d, parts, err
	}
	d, err := newDocument(config, ids, sizes)
	return d, parts, err
}

func (a *archive) part(name string) (part, error) {
	at, err := a.find(name)
	if err != nil {
		return part{}, err
	}
	head := make([]byte, min(layer.HeadLen, at.Size))
	if _, err := a.r.ReadAt(head, at.Off); err != nil && err != io.EOF {
		return part{}, err
	}
	return part{a, at, layer.Detect(head) == layer.None}, nil
}

// open returns the layer's uncompressed bytes. They are not verified.
func (p part) open() (io.ReadCloser, error) {
	raw := io.NewSectionReader(p.archive.r, p.place.Off, p.place.Size)
	if p.plain {
		return io.NopCloser(raw), nil
	}
	z, _, err := layer.Decompress(raw)
	if err != nil {
		return nil, err
	}
	return &bounded{ReadCloser: z, left: max(freeExpansion, maxRatio*p.place.Size)}, nil
}

// size returns how many bytes open gives.
func (p part) size(ctx context.Context) (int64, error) {
	if p.plain {
		return p.place.Size, nil
	}
	r, err := p.open()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(io.Discard, &interruptible{ctx, r})
}

// bounded fails when more comes than may.
type bounded struct {
	io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%w: it expands to more than %d times its size", imgsrc.ErrDamaged, maxRatio)
	}
	return n, err
}

// interruptible fails with ctx's error once that has ended.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}

// stored returns the manifest over this config, which is the blob of the image's id, or one that the index leads to which
// that is: the containerd image store calls images by these.
func (a *archive) stored(id string, config digest.Digest) ([]byte, error) {
	other := fmt.Errorf("%w: the engine's archive has the config %s, which is not image %s", imgsrc.ErrDamaged, config, id)
	level := []digest.Digest{digest.NewDigestFromEncoded(digest.SHA256, id)}
	seen := map[digest.Digest]bool{}
	for len(level) > 0 && len(seen) < maxManifests {
		d := level[0]
		level = level[1:]
		if seen[d] || d.Validate() != nil {
			continue
		}
		seen[d] = true
		var m struct {
			Config    *v1.Descriptor
			Manifests []v1.Descriptor
		}
		b, err := a.read("blobs/" + d.Algorithm().String() + "/" + d.Encoded())
		switch {
		case err != nil && len(seen) == 1:
			return nil, other
		case err != nil: // of another platform, and not in the archive
			continue
		case d.Algorithm().FromBytes(b) != d:
			return nil, fmt.Errorf("%w: the bytes of %s are %s", imgsrc.ErrDamaged, d, d.Algorithm().FromBytes(b))
		case json.Unmarshal(b, &m) != nil:
			continue
		case m.Config != nil && m.Config.Digest == config:
			return b, nil
		}
		for _, child := range m.Manifests {
			level = append(level, child.Digest)
		}
	}
	return nil, other
}

// engineError looks for what the engine appends to an archive that it could not finish: a line of JSON.
func engineError(r io.ReaderAt, size int64) error {
	const most = 8 << 10
	tail := make([]byte, min(most, size))
	n, _ := r.ReadAt(tail, size-int64(len(tail))) // what cannot be read says nothing
	tail = tail[:n]
	at := strings.LastIndex(string(tail), `{"errorDetail"`)
	if at < 0 {
		return nil
	}
	var line struct {
		Error string `json:"error"`
	}
	_ = json.NewDecoder(strings.NewReader(string(tail[at:]))).Decode(&line) // the engine's own line ends there, or says nothing
	if line.Error == "" {
		return nil
	}
	return fmt.Errorf("the engine could not finish: %s", line.Error)
}
