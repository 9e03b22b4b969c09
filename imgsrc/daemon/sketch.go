package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// What an inspection tells of an image's config, before it is saved; see "What is told" in doc.go.

// maxSketch is how many bytes of values are kept of one image.
const maxSketch = 64 << 10

// inspected is the part of an inspection that a sketch is made of.
type inspected struct {
	Created      string
	Author       string
	Architecture string
	Variant      string
	OS           string `json:"Os"`
	Config       map[string]json.RawMessage
	RootFS       struct{ Layers []digest.Digest }
}

// toldExec are the keys of Config whose values are the config's own. Healthcheck is not among them: an engine drops what it
// does not know of it.
var toldExec = []string{"User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal"}

// sketchOf returns what an inspection tells; nil if that is nothing that can be relied on.
func sketchOf(raw []byte, history bool) *imgsrc.Sketch {
	var in inspected
	if json.Unmarshal(raw, &in) != nil {
		return nil
	}
	s := &imgsrc.Sketch{}
	values := map[string]any{}
	if in.Created != "" {
		var err error
		if s.Created, err = time.Parse(time.RFC3339Nano, in.Created); err != nil {
			return nil
		}
	}
	switch {
	case s.Created.IsZero(): // or there is none
	case isExact(in.Created):
		values["created"] = in.Created
	default:
		s.Withheld = append(s.Withheld, "created")
	}
	texts := map[string]string{"author": in.Author, "architecture": in.Architecture, "variant": in.Variant}
	if in.Architecture != "" { // an image with neither is shown with the engine's own system
		texts["os"] = in.OS
	}
	for key, value := range texts {
		if value != "" {
			values[key] = value
		}
	}
	exec := map[string]json.RawMessage{}
	for _, key := range toldExec {
		if value := in.Config[key]; !isEmpty(value) {
			exec[key] = value
		}
	}
	if len(exec) > 0 {
		values["config"] = exec
	}
	if !isEmpty(in.Config["Healthcheck"]) {
		s.Withheld = append(s.Withheld, "Healthcheck")
	}
	if history {
		s.Withheld = append(s.Withheld, "history")
	}
	var err error
	if s.Config, err = json.Marshal(values); err != nil || len(s.Config) > maxSketch {
		return nil
	}
	if !slices.ContainsFunc(in.RootFS.Layers, func(d digest.Digest) bool { return d.Validate() != nil }) {
		s.DiffIDs = in.RootFS.Layers
	}
	return s
}

// isEmpty says whether a value is one that an engine also shows where there is none.
func isEmpty(value json.RawMessage) bool {
	switch string(bytes.TrimSpace(value)) {
	case "", "null", `""`, "[]", "{}", "{ }", "[ ]":
		return true
	}
	return false
}

// isExact says whether a time has the digits that the config has. An engine writes it anew, without the zeros at its end, so
// that only one with all nine digits can be told.
func isExact(created string) bool {
	_, fraction, ok := strings.Cut(created, ".")
	digits := len(fraction) - len(strings.TrimLeft(fraction, "0123456789"))
	return ok && digits == 9
}

// isDocker says whether the engine is Docker's own. What podman's service shows of a config is not always what the config
// has.
func (s *Source) isDocker(ctx context.Context) bool {
	v, err := ask(ctx, s.engine, func(ctx context.Context) (client.ServerVersionResult, error) {
		return s.engine.api.ServerVersion(ctx, client.ServerVersionOptions{})
	})
	return err == nil && len(v.Components) > 0 && v.Components[0].Name == "Engine"
}

// hasHistory says whether the engine is known to have an image's history. What it shows of that has neither all values nor all
// digits.
func (m *image) hasHistory(ctx context.Context) (bool, error) {
	h, err := ask(ctx, m.source.engine, func(ctx context.Context) (client.ImageHistoryResult, error) {
		return m.source.engine.api.ImageHistory(ctx, digest.SHA256.String()+":"+m.desc.ID)
	})
	return err == nil && len(h.Items) > 0, err
}

// Sketch returns what the engine tells of the image, until a save has said it.
func (m *image) Sketch() *imgsrc.Sketch { return m.sketch.Load() }
