package imgsrc

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Sketcher is an image whose manifest and config cost as much as all of it, while its source tells some of what they say
// for nothing.
type Sketcher interface {
	Image
	// Sketch returns what the source tells of the image; nil if it tells nothing, or the manifest and the config are at hand. It
	// does no I/O. The caller must not change it.
	Sketch() *Sketch
}

// A Sketch is what a source tells of an image that has not been read. Whatever it does not tell, the image may say or not.
type Sketch struct {
	// Config is a config, as JSON, with values that the image's own has too, the same when they have been decoded.
	Config []byte
	// Withheld are keys of values that the image's config has, without what they are: created, Healthcheck, history.
	Withheld []string
	// Created is when the image was made; zero if it does not say.
	Created time.Time
	// DiffIDs are those of the layers, base first; nil if they are not known.
	DiffIDs []digest.Digest
}

// Errors of what is asked of a sketch's facts.
var (
	// ErrUntold: the image says it, and what it says is not known before it has been read.
	ErrUntold = errors.New("not known before the image has been read")
	// ErrUnsure, which is an ErrUntold: nor is whether it says anything.
	ErrUnsure = fmt.Errorf("%w: nor whether there is any", ErrUntold)
)

// withheld is the value of what a sketch withholds. It is no JSON.
const withheld = "?"

// Facts returns the facts that a sketch tells of an image. The functions that take them return ErrUntold for all others.
func (s *Sketch) Facts(d Desc) *Facts {
	f := &Facts{Desc: d, Kind: KindImage, sketched: true}
	f.ManifestErr, f.ConfigErr = f.absent("value in the manifest"), f.untold("config")
	f.parseConfig(s.Config)
	for _, key := range s.Withheld {
		if key == "created" {
			f.cfg.Created = json.RawMessage(withheld)
		}
	}
	f.parseExec()
	f.historyErr = f.absent("history")
	for _, key := range s.Withheld {
		switch key {
		case "Healthcheck":
			f.exec.Healthcheck, f.execErr = json.RawMessage(withheld), nil
		case "history":
			f.historyErr = f.untold("history")
		}
	}
	f.diffErr = f.absent("diff ids")
	for _, id := range s.DiffIDs {
		f.Layers = append(f.Layers, LayerFacts{DiffID: id, Size: -1, entry: -1})
	}
	return f
}

// untold is the error for a value that the image has, and its sketch has not.
func (f *Facts) untold(what string) error {
	return fmt.Errorf("the %s of image %s: %w", what, f.ID, ErrUntold)
}
