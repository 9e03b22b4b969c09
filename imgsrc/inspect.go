package imgsrc

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Standing is what a mount knows of an image beyond its own bytes, for InspectJSON.
type Standing struct {
	Digest       digest.Digest // as the source has it, see [Listed]
	Names        []string
	RepoDigests  []string
	NamesHistory []string
	Parent       string // an id; empty if there is none
	Unpacked     int64  // see [Listed]
}

// inspection is what "podman image inspect" shows, with its names and in its order. GraphDriver, where the store keeps
// the image's directories, is not there: it says nothing of the image.
type inspection struct {
	ID           string            `json:"Id"`
	Digest       digest.Digest     `json:"Digest"`
	RepoTags     []string          `json:"RepoTags"`
	RepoDigests  []string          `json:"RepoDigests"`
	Parent       string            `json:"Parent"`
	Comment      string            `json:"Comment"`
	Created      *time.Time        `json:"Created"`
	Config       inspectedExec     `json:"Config"`
	Version      string            `json:"Version"`
	Author       string            `json:"Author"`
	Architecture string            `json:"Architecture"`
	OS           string            `json:"Os"`
	Size         *int64            `json:"Size,omitempty"`
	VirtualSize  *int64            `json:"VirtualSize,omitempty"`
	RootFS       inspectedRootFS   `json:"RootFS"`
	Labels       map[string]string `json:"Labels"`
	Annotations  map[string]string `json:"Annotations"`
	ManifestType string            `json:"ManifestType"`
	User         string            `json:"User"`
	History      []v1.History      `json:"History"`
	NamesHistory []string          `json:"NamesHistory"`
	Healthcheck  *healthcheck      `json:"Healthcheck,omitempty"`
}

type inspectedExec struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   words               `json:"Entrypoint,omitempty"`
	Cmd          words               `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
}

type inspectedRootFS struct {
	Type   string          `json:"Type"`
	Layers []digest.Digest `json:"Layers"`
}

// InspectJSON returns what "podman image inspect" shows of the image: a JSON array of one object. Here alone an absent
// value is an empty one, as podman shows it; what is not known is left out. Errors: ErrAbsent for an index or an
// artifact; ErrDamaged, also if only one value is.
func InspectJSON(f *Facts, s Standing) ([]byte, error) {
	switch {
	case f.ManifestErr != nil:
		return nil, f.ManifestErr
	case f.cfgErr != nil:
		return nil, f.cfgErr
	}
	i := inspection{
		ID: f.ID, Digest: f.Digest, RepoTags: append([]string{}, s.Names...), RepoDigests: append([]string{}, s.RepoDigests...), Parent: s.Parent, ManifestType: f.mediaType,
		RootFS: inspectedRootFS{Type: "layers"}, NamesHistory: s.NamesHistory,
	}
	var values struct {
		DockerVersion   string      `json:"docker_version"`
		Config          *dockerExec `json:"config"`
		ContainerConfig *dockerExec `json:"container_config"`
	}
	raw := f.Config
	if f.schema1 {
		raw = f.v1Config
	}
	err := json.Unmarshal(raw, &values)
	for _, v := range []struct {
		to   *string
		from func(*Facts) ([]byte, error)
	}{{&i.Comment, Comment}, {&i.Author, Author}, {&i.Architecture, Architecture}, {&i.OS, OS}, {&i.User, User}} {
		b, valueErr := v.from(f)
		if valueErr != nil && !errors.Is(valueErr, ErrAbsent) {
			err = errors.Join(err, valueErr)
		}
		if len(b) > 0 {
			*v.to = string(b[:len(b)-1])
		}
	}
	if err == nil {
		err = i.fill(f)
	}
	if err != nil {
		return nil, f.damaged("config", err)
	}
	i.Version = values.DockerVersion
	if s.Digest != "" {
		i.Digest = s.Digest
	}
	if f.schema1 {
		i.Comment = "" // podman shows none
	}
	if values.Config != nil {
		i.Config, i.Labels = values.Config.inspectedExec, values.Config.Labels
	}
	if f.docker && !f.schema1 {
		i.Healthcheck = values.ContainerConfig.health()
		if i.Healthcheck == nil {
			i.Healthcheck = values.Config.health()
		}
	}
	if s.Unpacked > 0 {
		i.Size, i.VirtualSize = &s.Unpacked, &s.Unpacked
	}
	b, err := encodeJSON([]inspection{i})
	if err != nil {
		return nil, f.damaged("config", err)
	}
	return b, nil
}

func (i *inspection) fill(f *Facts) error {
	if t, ok := f.Created(); ok {
		i.Created = &t
	}
	labels, err := Annotations(f)
	if err != nil && !errors.Is(err, ErrAbsent) {
		return err
	}
	i.Annotations = labels
	if i.Annotations == nil {
		i.Annotations = map[string]string{}
	}
	for _, l := range f.Layers {
		if l.DiffID != "" {
			i.RootFS.Layers = append(i.RootFS.Layers, l.DiffID)
		}
	}
	for _, h := range f.history {
		entry := v1.History{EmptyLayer: h.EmptyLayer}
		if h.Created != nil {
			entry.Created = &h.Created.time
		}
		for to, from := range map[*string]*string{&entry.CreatedBy: h.CreatedBy, &entry.Author: h.Author, &entry.Comment: h.Comment} {
			if from != nil {
				*to = *from
			}
		}
		i.History = append(i.History, entry)
	}
	return nil
}

// infoLayer is a layer, or an artifact's blob, in info.json.
type infoLayer struct {
	Digest      string            `json:"digest"`
	DiffID      string            `json:"diffID,omitempty"`
	MediaType   string            `json:"mediaType,omitempty"`
	Size        *int64            `json:"size,omitempty"`
	Title       string            `json:"title,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// infoChild is an entry of an index in info.json.
type infoChild struct {
	Name         string            `json:"name,omitempty"`
	Digest       string            `json:"digest"`
	MediaType    string            `json:"mediaType,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Size         *int64            `json:"size,omitempty"`
	Platform     *Platform         `json:"platform,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Present      *bool             `json:"present,omitempty"`
	ID           string            `json:"id,omitempty"`
}

// InfoJSON returns what is known of the image as a JSON object; what is not known is left out. Present says of an entry of
// an index whether there is an image with a manifest of this digest, and which; nil: nobody has looked yet.
func InfoJSON(f *Facts, present func(digest.Digest) (id string, ok *bool)) ([]byte, error) {
	info := struct {
		ID           string        `json:"id"`
		Kind         string        `json:"kind"`
		Digest       digest.Digest `json:"digest,omitempty"`
		MediaType    string        `json:"mediaType,omitempty"`
		ArtifactType string        `json:"artifactType,omitempty"`
		Subject      digest.Digest `json:"subject,omitempty"`
		Created      string        `json:"created,omitempty"`
		Platform     *Platform     `json:"platform,omitempty"`
		Size         *int64        `json:"size,omitempty"`
		Config       *infoLayer    `json:"config,omitempty"`
		Layers       []infoLayer   `json:"layers,omitempty"`
		Manifests    []infoChild   `json:"manifests,omitempty"`
		Damaged      []string      `json:"damaged,omitempty"`
	}{
		ID: f.ID, Kind: f.Kind.String(), Digest: f.Digest, MediaType: f.mediaType, ArtifactType: f.ArtifactType, Subject: f.Subject,
		Platform: f.platform(),
	}
	if t, err := CreatedText(f); err == nil && len(t) > 0 {
		info.Created = string(t[:len(t)-1])
	}
	if n, err := f.size(); err == nil {
		info.Size = &n
	}
	if f.config != nil {
		info.Config = &infoLayer{Digest: string(f.config.Digest), MediaType: f.config.MediaType, Size: f.config.Size}
	}
	for i := range f.Layers {
		l := &f.Layers[i]
		info.Layers = append(info.Layers, infoLayer{
			Digest: string(l.Digest), DiffID: string(l.DiffID), MediaType: l.MediaType, Size: known(l.Size), Title: l.Title, Annotations: l.Annotations,
		})
	}
	for i := range f.Children {
		c := &f.Children[i]
		id, ok := present(c.Digest)
		info.Manifests = append(info.Manifests, infoChild{
			Name: c.Name, Digest: string(c.Digest), MediaType: c.MediaType, ArtifactType: c.ArtifactType, Size: known(c.Size),
			Platform: c.Platform, Annotations: c.Annotations, Present: ok, ID: id,
		})
	}
	errs := []error{f.ConfigErr, f.cfgErr, f.execErr, f.diffErr, f.historyErr}
	if f.ManifestErr != nil { // without layers there is nothing for diff ids to fit
		errs = []error{f.ManifestErr, f.ConfigErr, f.cfgErr, f.execErr}
	}
	for _, err := range errs {
		if err != nil && !errors.Is(err, ErrAbsent) && !slices.Contains(info.Damaged, err.Error()) {
			info.Damaged = append(info.Damaged, err.Error())
		}
	}
	return encodeJSON(info)
}

// known is a size as JSON: nil for one that is not known.
func known(size int64) *int64 {
	if size < 0 {
		return nil
	}
	return &size
}

// platform is what the config says the image runs on; nil if it does not say.
func (f *Facts) platform() *Platform {
	var p Platform
	raw := f.Config
	if f.schema1 {
		raw = f.v1Config
	}
	if f.cfgErr != nil || json.Unmarshal(raw, &p) != nil || p.OS == "" && p.Architecture == "" {
		return nil
	}
	return &p
}

// size is the sum of the config's and the layers' sizes, as the manifest says them.
func (f *Facts) size() (int64, error) {
	if f.sketched {
		return 0, f.untold("size")
	}
	if f.ManifestErr != nil {
		return 0, f.ManifestErr
	}
	if len(f.sizes) == 0 || slices.Contains(f.sizes, -1) {
		return 0, f.absent("size")
	}
	var sum int64
	for _, n := range f.sizes {
		if n > math.MaxInt64-sum {
			return 0, f.damaged("size", errors.New("the sum is beyond 64 bits"))
		}
		sum += n
	}
	return sum, nil
}

// ArtifactTypeText returns what an artifact is: the manifest's artifactType, else the config's media type.
func ArtifactTypeText(f *Facts) ([]byte, error) {
	if f.ArtifactType == "" && f.ManifestErr != nil {
		return nil, f.ManifestErr
	}
	if f.ArtifactType == "" {
		return nil, f.absent("artifact type")
	}
	return text(f.ArtifactType), nil
}

// SubjectText returns the digest of the manifest that this one is about.
func SubjectText(f *Facts) ([]byte, error) {
	if f.Subject == "" && f.ManifestErr != nil {
		return nil, f.ManifestErr
	}
	if f.Subject == "" {
		return nil, f.absent("subject")
	}
	return text(string(f.Subject)), nil
}

// dockerExec is the part of a Docker config that podman shows.
type dockerExec struct {
	inspectedExec
	Healthcheck *healthcheck `json:"Healthcheck"`
}

func (e *dockerExec) health() *healthcheck {
	if e == nil {
		return nil
	}
	return e.Healthcheck
}
