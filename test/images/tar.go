package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
)

const block = 512

// WriteTar writes entries as a tar with its trailer.
func WriteTar(w io.Writer, entries []Entry) error {
	tw := tar.NewWriter(w)
	for i := range entries {
		e := &entries[i]
		var err error
		if e.Extents != nil {
			if err = tw.Flush(); err == nil {
				err = writeSparse(w, e)
			}
		} else {
			err = writeEntry(tw, e)
		}
		if err != nil {
			return fmt.Errorf("writing tar entry %q: %w", e.Name, err)
		}
	}
	return tw.Close()
}

func writeEntry(tw *tar.Writer, e *Entry) error {
	if err := tw.WriteHeader(&e.Header); err != nil {
		return err
	}
	if e.Path == "" {
		_, err := tw.Write(e.Data)
		return err
	}
	f, err := os.Open(e.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(tw, f, e.Size)
	return err
}

// writeSparse writes a file in GNU's sparse format 1.0 over PAX, which archive/tar reads but does not write: a PAX header with the
// real name and size, then a file whose body is the map, padded to a block, and the data.
func writeSparse(w io.Writer, e *Entry) error {
	var stored int64
	sparseMap := fmt.Sprintf("%d\n", len(e.Extents))
	for _, x := range e.Extents {
		sparseMap += fmt.Sprintf("%d\n%d\n", x.Offset, x.Length)
		stored += x.Length
	}
	if stored != int64(len(e.Data)) {
		return fmt.Errorf("%d bytes of data for extents of %d", len(e.Data), stored)
	}
	body := append(pad([]byte(sparseMap)), e.Data...)
	records := pax("GNU.sparse.major", "1") + pax("GNU.sparse.minor", "0") +
		pax("GNU.sparse.name", e.Name) + pax("GNU.sparse.realsize", strconv.FormatInt(e.Size, 10))
	dir, base := path.Split(e.Name)
	out := rawHeader(e, 'x', path.Join(dir, "PaxHeaders.0", base), len(records))
	out = append(out, pad([]byte(records))...)
	out = append(out, rawHeader(e, tar.TypeReg, path.Join(dir, "GNUSparseFile.0", base), len(body))...)
	out = append(out, pad(body)...)
	_, err := w.Write(out)
	return err
}

// pax is one PAX record: its length, which counts its own digits, a blank, and key=value.
func pax(key, value string) string {
	n := len(key) + len(value) + 3
	for {
		record := fmt.Sprintf("%d %s=%s\n", n, key, value)
		if len(record) == n {
			return record
		}
		n = len(record)
	}
}

func rawHeader(e *Entry, typ byte, name string, size int) []byte {
	h := make([]byte, block)
	copy(h[:100], name)
	copy(h[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00", e.Mode, e.Uid, e.Gid, size, e.ModTime.Unix()))
	h[156] = typ
	copy(h[257:], "ustar\x0000")
	copy(h[148:], "        ") // the checksum counts its own field as blanks
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

func pad(b []byte) []byte {
	if n := len(b) % block; n != 0 {
		b = append(b, bytes.Repeat([]byte{0}, block-n)...)
	}
	return b
}
