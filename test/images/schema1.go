package images

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The media types of Docker's schema 1.
const (
	dockerV1       = "application/vnd.docker.distribution.manifest.v1+json"
	dockerV1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// specV1 is the newest step in the example of the specification of schema 1; that it made no files is said here by "throwaway".
//
//go:embed spec/v1.json
var specV1 string

// emptyLayer is what Docker writes for a step that made no files: a tar without entries, compressed.
var emptyLayer = []byte{
	0x1f, 0x8b, 0x08, 0x00, 0x00, 0x09, 0x6e, 0x88, 0x00, 0xff, 0x62, 0x18, 0x05, 0xa3, 0x60, 0x14,
	0x8c, 0x58, 0x00, 0x08, 0x00, 0x00, 0xff, 0xff, 0x2e, 0xaf, 0xb5, 0xef, 0x00, 0x04, 0x00, 0x00,
}

type manifestV1 struct {
	Name          string      `json:"name"`
	Tag           string      `json:"tag"`
	Architecture  string      `json:"architecture"`
	FSLayers      []fsLayer   `json:"fsLayers"`
	History       []historyV1 `json:"history"`
	SchemaVersion int         `json:"schemaVersion"`
}

type fsLayer struct {
	BlobSum digest.Digest `json:"blobSum"`
}

type historyV1 struct {
	V1Compatibility string `json:"v1Compatibility"`
}

// schema1 adds images of schema 1 with three layers, of which the newest is the empty one.
func schema1(l *Layout) error {
	empty, err := l.WriteBlob(dockerLayer, emptyLayer)
	if err != nil {
		return err
	}
	there := []fsLayer{{empty.Digest}}
	for _, entries := range [][]Entry{{File("hello", "#!\n").WithMode(0o755)}, {Dir("etc"), File("etc/os-release", "ID=hello\n")}} {
		_, desc, err := l.writeLayer(Layer{Entries: entries}, Gzip, true)
		if err != nil {
			return fmt.Errorf("making a layer for schema 1: %w", err)
		}
		there = append(there, fsLayer{desc.Digest})
	}
	elsewhere := []fsLayer{{empty.Digest}, {digest.FromString("hello")}, {digest.FromString("base")}}
	for _, image := range []struct {
		name, mediaType string
		layers          []fsLayer
	}{{"signed", dockerV1Signed, there}, {"unsigned", dockerV1, there}, {"bare", dockerV1, elsewhere}} {
		// The author makes it an image of its own: layers and history of the first two are the same.
		text, err := textV1(image.layers, image.name)
		if err == nil && image.mediaType == dockerV1Signed {
			text, err = signV1(text)
		}
		var desc v1.Descriptor
		if err == nil {
			desc, err = l.WriteBlob(image.mediaType, text)
		}
		if err != nil {
			return fmt.Errorf("making the image %s of schema 1: %w", image.name, err)
		}
		l.List(desc, "localhost/v1:"+image.name)
	}
	return nil
}

// textV1 is a manifest, indented as Docker indents it.
func textV1(layers []fsLayer, author string) ([]byte, error) {
	base := strings.Repeat("0a", 32)
	hello := "31cbccb51277105ba3ae35ce33c22b69c9e3f1002e76e4c736a2e8ebff9d7b5d" // the parent in specV1
	step := func(id, parent, cmd string) historyV1 {
		if parent != "" {
			parent = fmt.Sprintf(`"parent":%q,`, parent)
		}
		return historyV1{fmt.Sprintf(`{"id":%q,%s"created":"2014-12-31T22:57:58Z","author":%q,"container_config":{"Cmd":[%q]}}`, id, parent, author, cmd)}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "   ")
	err := enc.Encode(manifestV1{
		Name: "library/hello-world", Tag: "latest", Architecture: "amd64", SchemaVersion: 1, FSLayers: layers,
		History: []historyV1{
			{strings.Replace(specV1, `"architecture"`, fmt.Sprintf(`"author":%q,"architecture"`, author), 1)},
			step(hello, base, "/bin/sh -c #(nop) COPY hello /"), step(base, "", "/bin/sh -c #(nop) ADD etc /"),
		},
	})
	return bytes.TrimSpace(b.Bytes()), err
}

// signV1 adds a signature as Docker does: what is signed is the text as it was, which "protected" says how to get back. The signature is that
// of the specification's example, which does not fit.
func signV1(text []byte) ([]byte, error) {
	body, ok := bytes.CutSuffix(text, []byte("\n}"))
	if !ok {
		return nil, fmt.Errorf("a manifest that ends in %q", text[max(0, len(text)-2):])
	}
	encode := base64.RawURLEncoding.EncodeToString
	protected := fmt.Sprintf(`{"formatLength":%d,"formatTail":%q,"time":"2015-04-08T18:52:59Z"}`, len(body), encode([]byte("\n}")))
	return fmt.Appendf(body, signatureV1, encode([]byte(protected))), nil
}

const signatureV1 = `,
   "signatures": [
      {
         "header": {
            "jwk": {
               "crv": "P-256",
               "kid": "OD6I:6DRK:JXEJ:KBM4:255X:NSAA:MUSF:E4VM:ZI6W:CUN2:L4Z6:LSF4",
               "kty": "EC",
               "x": "3gAwX48IQ5oaYQAYSxor6rYYc_6yjuLCjtQ9LUakg4A",
               "y": "t72ge6kIA1XOjqjVoEOiPPAURltJFBMGDSQvEGVB010"
            },
            "alg": "ES256"
         },
         "signature": "XREm0L8WNn27Ga_iE_vRnTxVMhhYY0Zst_FfkKopg6gWSoTOZTuW4rK0fg_IqnKkEKlbD83tD46LKEGi5aIVFg",
         "protected": "%s"
      }
   ]
}`
