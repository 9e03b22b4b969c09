package images

import (
	"bytes"
	"compress/gzip"
	"errors"

	"github.com/klauspost/compress/zstd"
)

// Gzipped is b compressed with gzip.
func Gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	must(errors.Join(err, w.Close()))
	return out.Bytes()
}

// Zstded is b compressed with zstd.
func Zstded(b []byte) []byte {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	must(err)
	_, err = w.Write(b)
	must(errors.Join(err, w.Close()))
	return out.Bytes()
}

// Tar is a tar of entries that are in memory.
func Tar(entries ...Entry) []byte {
	var out bytes.Buffer
	must(WriteTar(&out, entries))
	return out.Bytes()
}

// must is for what only fails when the disk does, where there is none.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
