package images

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A piece is one blob of an artifact.
type piece struct {
	mediaType, data string
	annotations     map[string]string
}

func titled(mediaType, data, title string) piece {
	return piece{mediaType, data, map[string]string{v1.AnnotationTitle: title}}
}

// An artifact is a manifest that is no image.
type artifact struct {
	artifactType, configType, config string
	pieces                           []piece
	subject                          *v1.Descriptor
	annotations                      map[string]string
}

func (l *Layout) writeArtifact(a artifact) (v1.Descriptor, error) {
	m := manifestOf(a.configType)
	m.ArtifactType, m.Subject, m.Annotations = a.artifactType, a.subject, a.annotations
	for _, p := range a.pieces {
		d, err := l.WriteBlob(p.mediaType, []byte(p.data))
		if err != nil {
			return v1.Descriptor{}, err
		}
		d.Annotations = p.annotations
		m.Layers = append(m.Layers, d)
	}
	var err error
	if m.Config, err = l.WriteBlob(a.configType, []byte(a.config)); err != nil {
		return v1.Descriptor{}, err
	}
	d, err := l.writeJSON(m.MediaType, m)
	d.ArtifactType = a.artifactType
	return d, err
}

// artifacts adds
//
//   - localhost/charts/mychart:0.1.0, a Helm chart
//   - localhost/thing:1, files with and without titles, one of them with a slash, and one called "digest"
//   - without names: an SBOM whose subject is amd64, and an index whose subject is app and that has app among its manifests
//   - localhost/app:sha256-<hex>.sig, a signature by cosign of app
func artifacts(l *Layout, app, amd64 v1.Descriptor) error {
	chart, err := chart()
	if err != nil {
		return fmt.Errorf("making a chart: %w", err)
	}
	subject := v1.Descriptor{MediaType: amd64.MediaType, Digest: amd64.Digest, Size: amd64.Size}
	for _, add := range []struct {
		artifact
		names []string
	}{
		{chart, []string{"localhost/charts/mychart:0.1.0"}},
		{artifact{artifactType: "application/vnd.example.thing", configType: v1.MediaTypeEmptyJSON, config: "{}", pieces: []piece{
			titled("text/plain", "a thing\n", "thing.txt"), titled("text/markdown", "# Thing\n", "docs/readme.md"),
			titled("application/octet-stream", "not its digest\n", "digest"), {"application/octet-stream", "no title\n", nil},
		}}, []string{"localhost/thing:1"}},
		{artifact{artifactType: "application/spdx+json", configType: v1.MediaTypeEmptyJSON, config: "{}", subject: &subject, pieces: []piece{
			titled("application/spdx+json", `{"spdxVersion":"SPDX-2.3","packages":[]}`, "sbom.spdx.json"),
		}, annotations: map[string]string{v1.AnnotationCreated: "2024-01-02T03:04:05Z"}}, nil},
		{signature(app), []string{"localhost/app:sha256-" + app.Digest.Encoded() + ".sig"}},
	} {
		d, err := l.writeArtifact(add.artifact)
		if err != nil {
			return fmt.Errorf("making artifact %v: %w", add.names, err)
		}
		l.List(d, add.names...)
	}
	return referringIndex(l, app)
}

func chart() (artifact, error) {
	var files bytes.Buffer
	zw := gzip.NewWriter(&files)
	text := "apiVersion: v2\nname: mychart\nversion: 0.1.0\n"
	err := WriteTar(zw, []Entry{File("mychart/Chart.yaml", text), File("mychart/templates/service.yaml", "kind: Service\n")})
	if err := errors.Join(err, zw.Close()); err != nil {
		return artifact{}, err
	}
	return artifact{
		configType: "application/vnd.cncf.helm.config.v1+json",
		config:     `{"name":"mychart","version":"0.1.0","description":"A Helm chart","apiVersion":"v2","appVersion":"1.16.0","type":"application"}`,
		pieces:     []piece{titled("application/vnd.cncf.helm.chart.content.v1.tar+gzip", files.String(), "mychart-0.1.0.tgz")},
		annotations: map[string]string{
			"org.opencontainers.image.title": "mychart", "org.opencontainers.image.version": "0.1.0", v1.AnnotationCreated: "2024-01-02T03:04:05Z",
		},
	}, nil
}

// signature is what cosign stores beside an image; that it would not verify is no matter.
func signature(of v1.Descriptor) artifact {
	payload := fmt.Sprintf(`{"critical":{"identity":{"docker-reference":"localhost/app"},"image":{"docker-manifest-digest":"%s"},`+
		`"type":"cosign container image signature"},"optional":null}`, of.Digest)
	return artifact{
		configType: v1.MediaTypeImageConfig,
		config: fmt.Sprintf(`{"architecture":"","created":"0001-01-01T00:00:00Z","history":[{"created":"0001-01-01T00:00:00Z"}],"os":"",`+
			`"rootfs":{"type":"layers","diff_ids":["%s"]},"config":{}}`, digest.FromString(payload)),
		pieces: []piece{{"application/vnd.dev.cosign.simplesigning.v1+json", payload, map[string]string{"dev.cosignproject.cosign/signature": "c2lnbmF0dXJl"}}},
	}
}

// referringIndex adds an index that refers to an image which is also one of its own.
func referringIndex(l *Layout, to v1.Descriptor) error {
	subject := v1.Descriptor{MediaType: to.MediaType, Digest: to.Digest, Size: to.Size}
	d, err := l.writeJSON(v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, ArtifactType: "application/vnd.example.collection",
		Manifests: []v1.Descriptor{to}, Subject: &subject,
	})
	if err != nil {
		return fmt.Errorf("making an index that refers: %w", err)
	}
	l.List(d)
	return nil
}

// AddNote adds an artifact of one text file that refers to a manifest.
func (l *Layout) AddNote(subject v1.Descriptor, title, text string) error {
	d, err := l.writeArtifact(artifact{
		artifactType: "application/vnd.example.note", configType: v1.MediaTypeEmptyJSON, config: "{}",
		subject: &v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		pieces:  []piece{titled("text/plain", text, title)},
	})
	if err != nil {
		return fmt.Errorf("making a note about %s: %w", subject.Digest, err)
	}
	l.List(d)
	return nil
}
