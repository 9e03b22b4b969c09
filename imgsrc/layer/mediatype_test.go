package layer

import "testing"

func TestCompressionOf(t *testing.T) {
	for mediaType, want := range map[string]Compression{
		"":                                       Gzip,
		"application/vnd.oci.image.layer.v1.tar": None,
		"application/vnd.oci.image.layer.v1.tar+gzip":                       Gzip,
		"application/vnd.oci.image.layer.v1.tar+zstd":                       Zstd,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip":      Gzip,
		"application/vnd.docker.image.rootfs.diff.tar":                      None,
		"application/vnd.docker.image.rootfs.diff.tar.gzip":                 Gzip,
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":         Gzip,
		"application/vnd.oci.image.layer.v1.tar+gzip+encrypted":             "",
		"application/vnd.cncf.helm.chart.content.v1.tar+gzip":               "",
		"application/vnd.oci.image.layer.v1.tar+brotli":                     "",
		"application/vnd.docker.image.rootfs.diff.tar.gzip; charset=binary": "",
	} {
		if got := CompressionOf(mediaType); got != want {
			t.Errorf("%s: %q, want %q", mediaType, got, want)
		}
	}
}
