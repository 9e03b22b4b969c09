package daemon

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	summary "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

const (
	maxImages  = 100_000
	inspectors = 6 // requests at a time: as many connections as the client keeps
	maxTorn    = 5 // how often to ask again when a name was moved while the engine answered
)

// A state is what the engine lists, in its own words.
type state struct {
	images     []summary.Summary
	containers []container.Summary
}

// A fingerprint stands for a state.
type fingerprint [sha256.Size]byte

func (s *Source) inspect(ctx context.Context, ref string) (client.ImageInspectResult, error) {
	return s.inspectRaw(ctx, ref, nil)
}

// inspectRaw also returns the engine's own words, if raw is not nil.
func (s *Source) inspectRaw(ctx context.Context, ref string, raw *bytes.Buffer) (client.ImageInspectResult, error) {
	return ask(ctx, s.engine, func(ctx context.Context) (client.ImageInspectResult, error) {
		return s.engine.api.ImageInspect(ctx, ref, client.ImageInspectWithRawResponse(raw))
	})
}

// ask reads what the engine lists: the images that "docker images" shows, all containers, in an order of their own.
func (s *Source) ask(ctx context.Context) (*state, error) {
	for n := 0; ; n++ {
		images, err := ask(ctx, s.engine, func(ctx context.Context) (client.ImageListResult, error) {
			return s.engine.api.ImageList(ctx, client.ImageListOptions{})
		})
		if err != nil {
			return nil, err
		}
		if n < maxTorn && isTorn(images.Items) {
			continue
		}
		containers, err := ask(ctx, s.engine, func(ctx context.Context) (client.ContainerListResult, error) {
			return s.engine.api.ContainerList(ctx, client.ContainerListOptions{All: true})
		})
		if err != nil {
			return nil, err
		}
		slices.SortStableFunc(images.Items, func(a, b summary.Summary) int {
			return cmp.Or(cmp.Compare(b.Created, a.Created), cmp.Compare(a.ID, b.ID))
		})
		slices.SortStableFunc(containers.Items, func(a, b container.Summary) int { return cmp.Compare(a.ID, b.ID) })
		return &state{images.Items, containers.Items}, nil
	}
}

// isTorn says whether two images have one name: the engine goes through them one by one.
func isTorn(images []summary.Summary) bool {
	holder := map[string]string{}
	for _, img := range images {
		for _, name := range img.RepoTags {
			if name == noTag {
				continue
			}
			if other, ok := holder[name]; ok && other != img.ID {
				return true
			}
			holder[name] = img.ID
		}
	}
	return false
}

// print returns the state's fingerprint, of what a listing goes by.
func (st *state) print() fingerprint {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, img := range st.images {
		_ = enc.Encode([]any{img.ID, img.RepoTags, img.RepoDigests, img.Size}) // these can be encoded
	}
	for _, c := range st.containers {
		_ = enc.Encode([]string{c.ID, c.ImageID})
	}
	return fingerprint(h.Sum(nil))
}

// List asks the engine for its images and containers, and inspects the images that are new to it. It saves none. The
// order is that of "docker images", the youngest first. Errors: imgsrc.ErrNotFound if the engine is gone; ETIMEDOUT if it
// leaves a question without an answer, or there is no end of them.
func (s *Source) List(ctx context.Context) (*imgsrc.Listing, error) {
	limited, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	l, err := s.list(limited)
	switch {
	case err == nil:
		return l, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case limited.Err() != nil:
		err = &failure{fmt.Sprintf("the engine at %s could not be asked for all images in %s", s.engine.host, listTimeout), []error{errSilent, unix.ETIMEDOUT}}
	case errors.Is(err, errNoEngine):
		err = &failure{err.Error(), []error{imgsrc.ErrNotFound, err}}
	}
	return nil, fmt.Errorf("listing %s: %w", s.Name(), err)
}

func (s *Source) list(ctx context.Context) (*imgsrc.Listing, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.tagging.RLock()
	defer s.tagging.RUnlock()
	st, err := s.ask(ctx)
	if err != nil {
		return nil, err
	}
	print := st.print()
	if err := s.restrict(ctx, st); err != nil {
		return nil, err
	}
	l := &imgsrc.Listing{}
	found, err := s.describe(ctx, st, l)
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, c := range st.containers {
		if id, err := idOf(c.ImageID); err == nil {
			users[id] = append(users[id], c.ID)
		}
	}
	seen := map[string]bool{}
	for _, sum := range st.images {
		id, err := idOf(sum.ID)
		if m := found[id]; err == nil && m != nil && !seen[id] {
			seen[id] = true
			l.Images = append(l.Images, imgsrc.Listed{
				Image: m, Names: fullNames(sum.RepoTags), RepoDigests: fullNames(sum.RepoDigests),
				Containers: users[id], Layers: m.layers, Unpacked: max(0, sum.Size),
			})
		}
	}
	s.listedAs.Store(&print)
	return l, nil
}

// restrict leaves the one image that the source is for, if it is there.
func (s *Source) restrict(ctx context.Context, st *state) error {
	if s.ref == "" {
		return nil
	}
	info, err := s.inspect(ctx, s.ref)
	if err != nil && !errors.Is(err, imgsrc.ErrNotFound) {
		return err
	}
	st.images = slices.DeleteFunc(st.images, func(img summary.Summary) bool { return err != nil || img.ID != info.ID })
	return nil
}

// describe returns an image for each that the engine lists: the one of the last listing where there was one. Those that
// are there no more are gone.
func (s *Source) describe(ctx context.Context, st *state, l *imgsrc.Listing) (map[string]*image, error) {
	s.mu.Lock()
	known := s.known
	s.mu.Unlock()
	found := map[string]*image{}
	var fresh []*image
	for _, sum := range st.images {
		id, err := idOf(sum.ID)
		switch {
		case err != nil:
			l.Problems = append(l.Problems, err)
		case found[id] != nil:
		case known[id] != nil:
			found[id] = known[id]
		case len(found) == maxImages:
			l.Problems = append(l.Problems, fmt.Errorf("%w: more than %d images: leaving out the rest", imgsrc.ErrUnsupported, maxImages))
		default:
			found[id] = &image{source: s, desc: imgsrc.Desc{ID: id, MediaType: manifest.DockerV2Schema2MediaType}}
			fresh = append(fresh, found[id])
		}
	}
	classic := len(fresh) > 0 && s.isClassic(ctx)
	docker := len(fresh) > 0 && s.isDocker(ctx)
	problems := make([]error, len(fresh))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(inspectors)
	for i, m := range fresh {
		g.Go(func() error {
			var err error
			problems[i], err = m.learn(gctx, classic, docker)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, err := range problems {
		if errors.Is(err, imgsrc.ErrNotFound) { // removed since the engine listed it
			delete(found, fresh[i].desc.ID)
		} else if err != nil {
			l.Problems = append(l.Problems, err)
		}
	}
	for id, m := range known {
		m.gone.Store(found[id] == nil)
	}
	s.mu.Lock()
	s.known = found
	s.mu.Unlock()
	return found, nil
}

// isClassic says whether the engine calls images by their configs' digests. With the containerd image store it does not;
// if it does not say, neither is known.
func (s *Source) isClassic(ctx context.Context) bool {
	info, err := ask(ctx, s.engine, func(ctx context.Context) (client.SystemInfoResult, error) {
		return s.engine.api.Info(ctx, client.InfoOptions{})
	})
	return err == nil && !slices.Contains(info.Info.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
}

// learn fills in what the engine knows of an image, and what an earlier save has said. The first error is this image's;
// the second that the engine is gone or silent, and will be so for the others.
func (m *image) learn(ctx context.Context, classic, docker bool) (problem, err error) {
	var raw bytes.Buffer
	info, err := m.source.inspectRaw(ctx, digest.SHA256.String()+":"+m.desc.ID, &raw)
	if ctx.Err() != nil || errors.Is(err, errNoEngine) || errors.Is(err, errSilent) {
		return nil, err
	}
	if err != nil {
		return fmt.Errorf("inspecting image %s: %w", m.desc.ID, err), nil
	}
	m.layers = info.RootFS.Layers
	if classic && info.Descriptor == nil {
		m.desc.Config = digest.NewDigestFromEncoded(digest.SHA256, m.desc.ID)
	}
	if d := info.Descriptor; d != nil && d.Digest == digest.NewDigestFromEncoded(digest.SHA256, m.desc.ID) && isManifest(d.MediaType) && d.Size > 0 {
		m.desc.Digest, m.desc.Size, m.desc.MediaType = d.Digest, d.Size, d.MediaType // which the engine keeps
	}
	if d := m.source.records.load(m.desc.ID); d != nil {
		m.desc.Digest, m.desc.Size, m.desc.MediaType, m.desc.Config = d.digest, int64(len(d.manifest)), d.mediaType, d.configDigest
	} else if docker {
		history, err := m.hasHistory(ctx)
		if ctx.Err() != nil || errors.Is(err, errSilent) {
			return nil, err
		}
		m.sketch.Store(sketchOf(raw.Bytes(), history))
	}
	return nil, nil
}

// isManifest says whether a media type is a single image's manifest.
func isManifest(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == manifest.DockerV2Schema2MediaType
}

// idOf takes the id from what the engine calls it.
func idOf(name string) (string, error) {
	if !idPattern.MatchString(name) {
		return "", fmt.Errorf("%w: the engine lists an image as %q", imgsrc.ErrUnsupported, name)
	}
	return strings.TrimPrefix(name, digest.SHA256.String()+":"), nil
}

// What old engines say of an image without names.
const (
	noTag    = "<none>:<none>"
	noDigest = "<none>@<none>"
)

// fullNames returns names in full: docker.io/library/web:1 is what the engine calls web:1.
func fullNames(names []string) []string {
	var full []string
	for _, name := range names {
		if name == noTag || name == noDigest {
			continue
		}
		if ref, err := reference.ParseNormalizedNamed(name); err == nil {
			name = ref.String()
		}
		full = append(full, name)
	}
	return full
}
