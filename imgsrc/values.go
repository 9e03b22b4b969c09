package imgsrc

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
)

// text is a value as a file's content: one final newline, and nothing at all if the value is empty.
func text(s string) []byte {
	if s == "" {
		return []byte{}
	}
	return []byte(s + "\n")
}

// lines is a list as a file's content: one item a line.
func lines(items []string) []byte {
	var b []byte
	for _, s := range items {
		b = append(append(b, s...), '\n')
	}
	if b == nil {
		return []byte{}
	}
	return b
}

// decode reads one value of a config or manifest into v. Errors: the one that says why there is no such document,
// ErrAbsent if the value is not in it, ErrDamaged.
func (f *Facts) decode(what string, raw json.RawMessage, noDoc error, v any) error {
	switch {
	case noDoc != nil:
		return noDoc
	case !given(raw):
		return f.absent(what)
	case f.sketched && string(raw) == withheld:
		return f.untold(what)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return f.damaged(what, err)
	}
	return nil
}

func (f *Facts) stringValue(what string, raw json.RawMessage, noDoc error) ([]byte, error) {
	var s string
	if err := f.decode(what, raw, noDoc, &s); err != nil {
		return nil, err
	}
	return text(s), nil
}

func (f *Facts) listValue(what string, raw json.RawMessage, noDoc error) ([]byte, error) {
	var list words
	if err := f.decode(what, raw, noDoc, &list); err != nil {
		return nil, err
	}
	return lines(list), nil
}

// setValue is a list that JSON holds as the keys of an object.
func (f *Facts) setValue(what string, raw json.RawMessage, noDoc error) ([]byte, error) {
	var set map[string]json.RawMessage
	if err := f.decode(what, raw, noDoc, &set); err != nil {
		return nil, err
	}
	return lines(slices.Sorted(maps.Keys(set))), nil
}

// DigestText returns the manifest's digest.
func DigestText(f *Facts) ([]byte, error) {
	switch {
	case f.Digest == "" && f.sketched:
		return nil, f.untold("digest")
	case f.Digest == "" && f.ManifestErr != nil:
		return nil, f.ManifestErr
	case f.Digest == "":
		return nil, f.absent("digest")
	}
	return text(string(f.Digest)), nil
}

// IDText returns the image's id.
func IDText(f *Facts) ([]byte, error) {
	if f.ID == "" {
		return nil, f.absent("id")
	}
	return text(f.ID), nil
}

// MediaTypeText returns the manifest's media type: its own, else the source's, else the one whose fields it has.
func MediaTypeText(f *Facts) ([]byte, error) {
	switch {
	case f.mediaType == "" && f.sketched:
		return nil, f.untold("media type")
	case f.mediaType == "":
		return nil, f.absent("media type")
	}
	return text(f.mediaType), nil
}

// SizeText returns what a pull transfers beside the manifest: the sum of the config's and the layers' sizes in bytes, as the manifest
// says them. Error: ErrAbsent if it does not say one of them.
func SizeText(f *Facts) ([]byte, error) {
	sum, err := f.size()
	if err != nil {
		return nil, err
	}
	return text(strconv.FormatInt(sum, 10)), nil
}

// CreatedText returns when the image was made, in RFC 3339 with the digits that the config has.
func CreatedText(f *Facts) ([]byte, error) {
	var t timeText
	if err := f.decode("time of creation", f.cfg.Created, f.cfgErr, &t); err != nil {
		return nil, err
	}
	return text(t.text), nil
}

// Author returns the config's author.
func Author(f *Facts) ([]byte, error) {
	return f.stringValue("author", f.cfg.Author, f.cfgErr)
}

// Comment returns the image's comment: the config's, and for an OCI config, which has no such field, that of the oldest
// history entry. This is what podman shows.
func Comment(f *Facts) ([]byte, error) {
	if f.cfgErr == nil && !given(f.cfg.Comment) && !f.docker && len(f.history) > 0 && f.history[0].Comment != nil {
		return text(*f.history[0].Comment), nil
	}
	return f.stringValue("comment", f.cfg.Comment, f.cfgErr)
}

// Architecture returns the processor architecture that the image is for, by Go's name for it.
func Architecture(f *Facts) ([]byte, error) {
	return f.stringValue("architecture", f.cfg.Architecture, f.cfgErr)
}

// OS returns the operating system that the image is for, by Go's name for it.
func OS(f *Facts) ([]byte, error) {
	return f.stringValue("operating system", f.cfg.OS, f.cfgErr)
}

// Variant returns the variant of the architecture ("v8").
func Variant(f *Facts) ([]byte, error) {
	return f.stringValue("variant", f.cfg.Variant, f.cfgErr)
}

// User returns the user, and perhaps group, that the image runs as.
func User(f *Facts) ([]byte, error) {
	return f.stringValue("user", f.exec.User, f.execErr)
}

// Env returns the environment, one NAME=VALUE a line, in the config's order.
func Env(f *Facts) ([]byte, error) {
	return f.listValue("environment", f.exec.Env, f.execErr)
}

// Entrypoint returns the entry point, one word a line.
func Entrypoint(f *Facts) ([]byte, error) {
	return f.listValue("entry point", f.exec.Entrypoint, f.execErr)
}

// Cmd returns the command, or the entry point's default arguments, one word a line.
func Cmd(f *Facts) ([]byte, error) {
	return f.listValue("command", f.exec.Cmd, f.execErr)
}

// WorkDir returns the working directory.
func WorkDir(f *Facts) ([]byte, error) {
	return f.stringValue("working directory", f.exec.WorkingDir, f.execErr)
}

// ExposedPorts returns the ports that the image listens on ("80/tcp"), one a line, sorted.
func ExposedPorts(f *Facts) ([]byte, error) {
	return f.setValue("exposed ports", f.exec.ExposedPorts, f.execErr)
}

// Volumes returns the paths of the image's volumes, one a line, sorted.
func Volumes(f *Facts) ([]byte, error) {
	return f.setValue("volumes", f.exec.Volumes, f.execErr)
}

// StopSignal returns the signal that stops the image's container.
func StopSignal(f *Facts) ([]byte, error) {
	return f.stringValue("stop signal", f.exec.StopSignal, f.execErr)
}

// healthcheck is Docker's HealthConfig. Durations are in nanoseconds.
type healthcheck struct {
	Test          words  `json:"Test,omitempty"`
	Interval      *int64 `json:"Interval,omitempty"`
	Timeout       *int64 `json:"Timeout,omitempty"`
	StartPeriod   *int64 `json:"StartPeriod,omitempty"`
	StartInterval *int64 `json:"StartInterval,omitempty"`
	Retries       *int64 `json:"Retries,omitempty"`
}

// Healthcheck returns the health check as JSON with the fields of Docker's HealthConfig, durations in nanoseconds, also from an OCI
// config that carries one, where the specification reserves the name for it.
func Healthcheck(f *Facts) ([]byte, error) {
	var h healthcheck
	if err := f.decode("health check", f.exec.Healthcheck, f.execErr, &h); err != nil {
		return nil, err
	}
	return encodeJSON(h)
}

// Labels returns the config's labels.
func Labels(f *Facts) (map[string]string, error) {
	var m stringMap
	if err := f.decode("labels", f.exec.Labels, f.execErr, &m); err != nil {
		return nil, err
	}
	return m, nil
}

// Annotations returns the manifest's or index's annotations.
func Annotations(f *Facts) (map[string]string, error) {
	var m stringMap
	if err := f.decode("annotations", f.annotations, f.ManifestErr, &m); err != nil {
		return nil, err
	}
	return m, nil
}

// LabelsJSON returns Labels as a JSON object.
func LabelsJSON(f *Facts) ([]byte, error) {
	m, err := Labels(f)
	if err != nil {
		return nil, err
	}
	return encodeJSON(m)
}

// AnnotationsJSON returns Annotations as a JSON object.
func AnnotationsJSON(f *Facts) ([]byte, error) {
	m, err := Annotations(f)
	if err != nil {
		return nil, err
	}
	return encodeJSON(m)
}
