package ops

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
)

// pack writes the directory dir as the tar file file, which must not be there. The owner of what it packs is left out.
func pack(ctx context.Context, dir, file string) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	tw := tar.NewWriter(f)
	root := os.DirFS(dir)
	err = fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: 0o644, ModTime: info.ModTime()}
		if entry.IsDir() {
			h.Typeflag, h.Name, h.Size, h.Mode = tar.TypeDir, name+"/", 0, 0o755
		}
		if err := tw.WriteHeader(h); err != nil || entry.IsDir() {
			return err
		}
		content, err := root.Open(name)
		if err != nil {
			return err
		}
		defer content.Close()
		_, err = io.Copy(tw, &ctxReader{ctx, content})
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// A ctxReader is a reader that fails when its context ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
