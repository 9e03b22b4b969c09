package imgsrc

import (
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
)

// What a sketch tells is what the functions make of a config; what it does not tell is not taken for absent.
func TestSketchFacts(t *testing.T) {
	diffID := digest.FromString("layer")
	s := &Sketch{
		Config:   []byte(`{"architecture":"arm64","config":{"Env":["A=1","B"],"Labels":{"k":"v"},"ExposedPorts":{"80/tcp":{},"443/tcp":{}}}}`),
		Withheld: []string{"created", "Healthcheck", "history"},
		DiffIDs:  []digest.Digest{diffID},
	}
	f := s.Facts(Desc{ID: "abc"})
	for name, want := range map[string]struct {
		of   func(*Facts) ([]byte, error)
		text string
	}{
		"id":            {IDText, "abc\n"},
		"architecture":  {Architecture, "arm64\n"},
		"env":           {Env, "A=1\nB\n"},
		"labels.json":   {LabelsJSON, "{\n  \"k\": \"v\"\n}\n"},
		"exposed-ports": {ExposedPorts, "443/tcp\n80/tcp\n"},
		"diff-id":       {func(f *Facts) ([]byte, error) { return LayerDiffID(f, 0) }, diffID.String() + "\n"},
	} {
		if b, err := want.of(f); err != nil || string(b) != want.text {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	withheld := map[string]func(*Facts) ([]byte, error){
		"created": CreatedText, "healthcheck": Healthcheck, "history": HistoryText, "history.json": HistoryJSON, "digest": DigestText,
		"media type": MediaTypeText, "size": SizeText, "config.oci.json": ConfigOCI, "config.docker.json": ConfigDocker,
		"layer digest": func(f *Facts) ([]byte, error) { return LayerDigest(f, 0) },
	}
	for name, of := range withheld {
		if b, err := of(f); !errors.Is(err, ErrUntold) || errors.Is(err, ErrUnsure) || errors.Is(err, ErrAbsent) {
			t.Errorf("%s, which every image has or this one: %q, %v", name, b, err)
		}
	}
	for name, of := range map[string]func(*Facts) ([]byte, error){
		"os": OS, "author": Author, "comment": Comment, "variant": Variant, "user": User, "cmd": Cmd, "volumes": Volumes, "stop-signal": StopSignal,
		"inspect.json":     func(f *Facts) ([]byte, error) { return InspectJSON(f, Standing{}) },
		"annotations.json": AnnotationsJSON, "artifact-type": ArtifactTypeText, "subject": SubjectText,
	} {
		if b, err := of(f); !errors.Is(err, ErrUnsure) || errors.Is(err, ErrAbsent) {
			t.Errorf("%s, which the image may have or not: %q, %v", name, b, err)
		}
	}
	nothing := (&Sketch{Config: []byte(`{}`)}).Facts(Desc{ID: "abc"})
	for _, of := range []func(*Facts) ([]byte, error){CreatedText, HistoryText, Healthcheck, Env} {
		if b, err := of(nothing); !errors.Is(err, ErrUnsure) {
			t.Errorf("of an image of which nothing is told: %q, %v", b, err)
		}
	}
}
