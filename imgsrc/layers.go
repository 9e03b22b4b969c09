package imgsrc

import (
	"errors"
	"fmt"
	"strconv"
)

// LayerState is what the source can give of a layer, for LayerInfoJSON.
type LayerState struct {
	Blob   bool   // the bytes of the manifest's digest
	Diff   bool   // the uncompressed tar
	Files  bool   // the files
	WhyNot string // why one of them is missing; empty if that needs no explanation
	TOC    bool   // the files are shown as the layer's table of contents has them, and not as its tar
}

func (f *Facts) layer(n int) (*LayerFacts, error) {
	switch {
	case n >= 0 && n < len(f.Layers):
		return &f.Layers[n], nil
	case f.ManifestErr != nil:
		return nil, f.ManifestErr
	}
	return nil, f.absent(fmt.Sprintf("layer %d", n))
}

// LayerDigest returns the digest of layer n in the manifest.
func LayerDigest(f *Facts, n int) ([]byte, error) {
	l, err := f.layer(n)
	if err != nil {
		return nil, err
	}
	if l.Digest == "" && f.sketched {
		return nil, f.untold(fmt.Sprintf("digest of layer %d", n))
	}
	return text(string(l.Digest)), nil
}

// LayerDiffID returns the digest of layer n's uncompressed tar, from the config. Errors: ErrAbsent; ErrDamaged also if the
// config has not as many as there are layers.
func LayerDiffID(f *Facts, n int) ([]byte, error) {
	l, err := f.layer(n)
	if err != nil {
		return nil, err
	}
	if l.DiffID == "" {
		return nil, f.diffErr
	}
	return text(string(l.DiffID)), nil
}

// LayerMediaType returns the media type of layer n.
func LayerMediaType(f *Facts, n int) ([]byte, error) {
	l, err := f.layer(n)
	if err != nil {
		return nil, err
	}
	if l.MediaType == "" {
		return nil, f.absent(fmt.Sprintf("media type for layer %d", n))
	}
	return text(l.MediaType), nil
}

// LayerSize returns the size of layer n in bytes, as the manifest says.
func LayerSize(f *Facts, n int) ([]byte, error) {
	l, err := f.layer(n)
	if err != nil {
		return nil, err
	}
	if l.Size < 0 {
		return nil, f.absent(fmt.Sprintf("size for layer %d", n))
	}
	return text(strconv.FormatInt(l.Size, 10)), nil
}

// LayerCreatedBy returns the command that made layer n, from the history.
func LayerCreatedBy(f *Facts, n int) ([]byte, error) {
	l, err := f.layer(n)
	switch {
	case err != nil:
		return nil, err
	case f.historyErr != nil && !errors.Is(f.historyErr, ErrAbsent):
		return nil, f.historyErr
	case l.entry < 0 || f.history[l.entry].CreatedBy == nil:
		return nil, f.absent(fmt.Sprintf("history for layer %d", n))
	}
	return text(l.CreatedBy), nil
}

// LayerInfoJSON returns what is known of layer n as a JSON object. What is not known is left out.
func LayerInfoJSON(f *Facts, n int, s LayerState) ([]byte, error) {
	l, err := f.layer(n)
	if err != nil {
		return nil, err
	}
	info := struct {
		Digest      string            `json:"digest"`
		DiffID      string            `json:"diffID,omitempty"`
		MediaType   string            `json:"mediaType,omitempty"`
		Size        *int64            `json:"size,omitempty"`
		CreatedBy   *string           `json:"createdBy,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
		Blob        bool              `json:"blob"`
		Diff        bool              `json:"diff"`
		Files       bool              `json:"files"`
		WhyNot      string            `json:"whyNot,omitempty"`
		Metadata    string            `json:"metadata,omitempty"`
	}{
		Digest: string(l.Digest), DiffID: string(l.DiffID), MediaType: l.MediaType, Annotations: l.Annotations,
		Blob: s.Blob, Diff: s.Diff, Files: s.Files, WhyNot: s.WhyNot,
	}
	if s.TOC {
		info.Metadata = "toc"
	}
	if l.Size >= 0 {
		info.Size = &l.Size
	}
	if l.entry >= 0 {
		info.CreatedBy = f.history[l.entry].CreatedBy
	}
	return encodeJSON(info)
}
