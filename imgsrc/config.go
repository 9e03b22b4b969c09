package imgsrc

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// configDoc is a config, OCI's or Docker's, undecoded, so that one damaged value leaves the others readable.
type configDoc struct {
	Created      json.RawMessage `json:"created"`
	Author       json.RawMessage `json:"author"`
	Comment      json.RawMessage `json:"comment"`
	Architecture json.RawMessage `json:"architecture"`
	Variant      json.RawMessage `json:"variant"`
	OS           json.RawMessage `json:"os"`
	Config       json.RawMessage `json:"config"`
	RootFS       json.RawMessage `json:"rootfs"`
	History      json.RawMessage `json:"history"`
}

// execDoc is the part of a config that says how to run the image.
type execDoc struct {
	User         json.RawMessage `json:"User"`
	ExposedPorts json.RawMessage `json:"ExposedPorts"`
	Env          json.RawMessage `json:"Env"`
	Entrypoint   json.RawMessage `json:"Entrypoint"`
	Cmd          json.RawMessage `json:"Cmd"`
	Volumes      json.RawMessage `json:"Volumes"`
	WorkingDir   json.RawMessage `json:"WorkingDir"`
	Labels       json.RawMessage `json:"Labels"`
	StopSignal   json.RawMessage `json:"StopSignal"`
	Healthcheck  json.RawMessage `json:"Healthcheck"`
}

func (f *Facts) parseConfig(b []byte) {
	var doc *configDoc
	err := json.Unmarshal(b, &doc)
	if err == nil && doc == nil {
		err = errors.New("it is null")
	}
	if err != nil {
		f.cfgErr = f.damaged("config", err)
		return
	}
	f.cfg = *doc
}

func (f *Facts) parseExec() {
	switch {
	case f.cfgErr != nil:
		f.execErr = f.cfgErr
	case !given(f.cfg.Config):
		f.execErr = f.absent("settings for running it (config)")
	default:
		if err := json.Unmarshal(f.cfg.Config, &f.exec); err != nil {
			f.exec, f.execErr = execDoc{}, f.damaged("settings for running (config)", err)
		}
	}
}

// parseDiffIDs joins the config's diff ids to the layers. If there are more or fewer of them than layers, no layer has one:
// which would be whose is not known.
func (f *Facts) parseDiffIDs() {
	switch {
	case f.givenDiffIDs != nil:
		for i := range min(len(f.Layers), len(f.givenDiffIDs)) {
			f.Layers[i].DiffID = f.givenDiffIDs[i]
		}
		return
	case f.cfgErr != nil:
		f.diffErr = f.cfgErr
		return
	case !given(f.cfg.RootFS):
		f.diffErr = f.absent("diff ids")
		return
	}
	var rootfs struct {
		DiffIDs json.RawMessage `json:"diff_ids"`
	}
	if err := json.Unmarshal(f.cfg.RootFS, &rootfs); err != nil {
		f.diffErr = f.damaged("diff ids", err)
		return
	}
	ids, err := decodeList[digest.Digest](rootfs.DiffIDs)
	for _, id := range ids {
		err = errors.Join(err, checkDigest(id))
	}
	if err == nil && len(ids) != len(f.Layers) {
		err = fmt.Errorf("%d diff ids for %d layers", len(ids), len(f.Layers))
	}
	if err != nil {
		f.diffErr = f.damaged("diff ids", err)
		return
	}
	for i, id := range ids {
		f.Layers[i].DiffID = id
	}
}

// ociConfig is the OCI image config, with the fields and in the order of the image specification's config.md. Times keep
// their digits, and a command may be a single string, as in old configs of Docker's.
type ociConfig struct {
	Created      *timeText `json:"created,omitempty"`
	Author       string    `json:"author,omitempty"`
	Architecture string    `json:"architecture"`
	Variant      string    `json:"variant,omitempty"`
	OS           string    `json:"os"`
	OSVersion    string    `json:"os.version,omitempty"`
	OSFeatures   []string  `json:"os.features,omitempty"`
	Config       *ociExec  `json:"config,omitempty"`
	RootFS       *struct {
		Type    string           `json:"type"`
		DiffIDs *[]digest.Digest `json:"diff_ids,omitempty"`
	} `json:"rootfs"`
	History []struct {
		Created    *timeText `json:"created,omitempty"`
		CreatedBy  string    `json:"created_by,omitempty"`
		Author     string    `json:"author,omitempty"`
		Comment    string    `json:"comment,omitempty"`
		EmptyLayer bool      `json:"empty_layer,omitempty"`
	} `json:"history,omitempty"`
}

type ociExec struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   words               `json:"Entrypoint,omitempty"`
	Cmd          words               `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       stringMap           `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
	ArgsEscaped  bool                `json:"ArgsEscaped,omitempty"`
}

// ConfigOCI returns the config as an OCI image config: the exact bytes where it is one, otherwise converted. Without its
// layers' diff ids a schema 1 image's has none either. Errors: ErrAbsent; ErrDamaged.
func ConfigOCI(f *Facts) ([]byte, error) {
	docker, err := ConfigDocker(f)
	if err != nil || !f.docker {
		return docker, err
	}
	var c ociConfig
	if err := json.Unmarshal(docker, &c); err != nil {
		return nil, f.damaged("config", err)
	}
	switch {
	case c.RootFS == nil:
		return nil, f.damaged("config", errors.New("no rootfs, without which it is no OCI config"))
	case c.RootFS.DiffIDs == nil && !f.LacksDiffIDs():
		c.RootFS.DiffIDs = &[]digest.Digest{}
	}
	if f.schema1 {
		c.withoutMadeUpTimes()
	}
	return encodeJSON(c)
}

// withoutMadeUpTimes drops the year 1, which the conversion of schema 1 writes where there is no time.
func (c *ociConfig) withoutMadeUpTimes() {
	for i := range c.History {
		if t := c.History[i].Created; t != nil && t.time.IsZero() {
			c.History[i].Created = nil
		}
	}
}

// ConfigDocker returns the config as a Docker schema 2 config. Unless the image is of schema 1 that is the exact bytes in
// either case: Docker's config has every field that OCI's has, under the same name, and requires no other, so the
// conversion changes nothing, and with it the image's id stays what it is. Schema 1 is converted, to the bytes that podman
// makes of it, whose digest it takes for the image's id. Errors: as ConfigOCI.
func ConfigDocker(f *Facts) ([]byte, error) {
	if f.cfgErr != nil {
		return nil, f.cfgErr
	}
	if f.schema1 {
		return f.convertSchema1()
	}
	return f.Config, f.ConfigErr
}
