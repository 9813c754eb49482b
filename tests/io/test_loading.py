# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Geometry is compared with SimpleITK and nibabel; each kind of bad input has to be refused with its own message."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Orientation, Resize, Spacing
from PIL import Image

from atlas_istn.errors import InputError
from atlas_istn.io.cases import find_cases
from atlas_istn.io.dicom import read_series
from atlas_istn.io.geometry import check_same_grid
from atlas_istn.io.loading import LENGTH_UNIT, LoadCased, read_volume
from support import CASES, DATA

sitk = pytest.importorskip("SimpleITK")

AFFINE = np.array([[0, -1.2, 0, 5], [0.9, 0, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1.0]])
NOISE = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)


def save(path, array=NOISE, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), path)
    return str(path)


def save_png(path, array):
    Image.fromarray(array).save(path)
    return str(path)


def sitk_ras_point(image, index):
    point = np.array(image.TransformIndexToPhysicalPoint(index))
    return point * [-1, -1, 1][: len(point)]


class TestGeometry:
    """Axes, affines and what is kept of the header."""

    def test_nifti(self, tmp_path):
        volume = read_volume(save(tmp_path / "a.nii.gz"), 3)
        assert volume.dtype == torch.float32
        np.testing.assert_array_equal(volume[0], NOISE)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)  # stored as float32

    @pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
    def test_itk_formats_agree_with_nifti(self, tmp_path, suffix):
        image = sitk.ReadImage(save(tmp_path / "a.nii"))
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        volume = read_volume(tmp_path / f"a{suffix}", 3)
        np.testing.assert_array_equal(volume[0], NOISE)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)

    @pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
    def test_signed_bytes_are_read_though_the_wheels_of_itk_lack_them(self, tmp_path, suffix):
        """Public data sets have label maps of ``MET_CHAR``."""
        voxels = np.arange(-60, 60).reshape(4, 5, 6).astype(np.int8)
        image = sitk.GetImageFromArray(voxels.T)
        image.SetSpacing((1.0, 2.0, 3.0))
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        volume = read_volume(tmp_path / f"a{suffix}", 3)
        np.testing.assert_array_equal(volume[0], voxels)
        np.testing.assert_allclose(volume.pixdim, [1.0, 2.0, 3.0])

    def test_png_has_the_coordinates_that_itk_gives_it(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 255, (7, 9)).astype(np.uint8)  # [row, column]
        path = save_png(tmp_path / "a.png", pixels)
        volume, image = read_volume(path, 2), sitk.ReadImage(path)
        column, row = 3, 5

        assert volume[0, column, row] == pixels[row, column] == image[column, row]
        world = volume.affine.numpy() @ [column, row, 0, 1]
        np.testing.assert_array_equal(world[:2], sitk_ras_point(image, (column, row)))
        np.testing.assert_array_equal(volume.affine, np.diag([-1, -1, 1, 1]))

    def test_png_has_the_pixel_size_that_is_stated(self, tmp_path):
        path = save_png(tmp_path / "a.png", np.arange(63, dtype=np.uint8).reshape(7, 9))  # [row, column]
        plain, sized = read_volume(path, 2), read_volume(path, 2, (0.5, 0.25))
        np.testing.assert_array_equal(sized, plain)
        np.testing.assert_allclose(sized.affine, np.diag([-0.5, -0.25, 1, 1]))
        assert (plain.meta[LENGTH_UNIT], sized.meta[LENGTH_UNIT]) == ("pixels", "mm")
        case = LoadCased(["image", "label"], 2, pixel_size=(0.5, 0.25))({"image": path, "label": path})
        np.testing.assert_allclose(case["label"].pixdim[:2], [0.5, 0.25])

    def test_files_that_state_their_voxel_size_refuse_another(self, tmp_path):
        with pytest.raises(InputError, match=r"a\.nii: the file states its voxel size.*0\.5 × 0\.25 mm"):
            read_volume(save(tmp_path / "a.nii"), 3, (0.5, 0.25))

    def test_png_of_16_bits(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 65535, (7, 9)).astype(np.uint16)
        np.testing.assert_array_equal(read_volume(save_png(tmp_path / "a.png", pixels), 2)[0], pixels.T)

    def test_png_pixels_come_back_by_a_transpose(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 255, (7, 9)).astype(np.uint8)
        volume = read_volume(save_png(tmp_path / "a.png", pixels), 2)
        back = save_png(tmp_path / "b.png", volume[0].numpy().T.astype(np.uint8))
        np.testing.assert_array_equal(np.asarray(Image.open(back)), pixels)

    def test_dicom_slices_in_order_of_position(self, tmp_path, write_series):
        """Neither file names nor instance numbers tell the order."""

        def shuffle(index, tags):
            tags["InstanceNumber"] = [3, 1, 6, 2, 5, 4][index]

        pixels = write_series(tmp_path / "series", shuffle)
        volume = read_volume(tmp_path / "series", 3)
        np.testing.assert_array_equal(volume[0], pixels.T)
        expected = np.diag([-0.5, -1.5, 2, 1])
        expected[:3, 3] = [-10, -20, 30]
        np.testing.assert_allclose(volume.affine, expected, atol=1e-6)

    def test_oblique_dicom_agrees_with_simpleitk(self, tmp_path, write_series):
        angle = 0.4
        row, column = [np.cos(angle), np.sin(angle), 0], [0, 0, -1]
        normal = np.cross(row, column)

        def turn(index, tags):
            tags["ImageOrientationPatient"] = [round(value, 8) for value in (*row, *column)]
            tags["ImagePositionPatient"] = [round(value, 8) for value in 5 + 2 * index * normal]

        write_series(tmp_path / "series", turn)
        volume = read_volume(tmp_path / "series", 3)
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "series"))
        image = sitk.ReadImage(names)

        np.testing.assert_array_equal(volume[0], sitk.GetArrayFromImage(image).T)
        for index in ((0, 0, 0), (3, 4, 5)):
            # positions are written with 8 digits
            np.testing.assert_allclose(
                (volume.affine.numpy() @ [*index, 1])[:3], sitk_ras_point(image, index), atol=1e-6
            )

    def test_slices_may_differ_in_rescale_slope(self, tmp_path, write_series):
        def rescale(index, tags):
            tags.update(RescaleSlope=1 if index == 0 else 0.25, RescaleIntercept=0)

        pixels = write_series(tmp_path / "series", rescale)
        expected = pixels * np.array([1, *[0.25] * 5])[:, None, None]
        np.testing.assert_array_equal(read_volume(tmp_path / "series", 3)[0], expected.T)

    def test_objects_that_are_no_images_do_not_matter(self, tmp_path, write_series):
        pixels = write_series(tmp_path / "series")
        write_series(tmp_path / "other")
        report = next((tmp_path / "other").iterdir())
        strip_image(report)
        report.rename(tmp_path / "series" / "report.dcm")
        (tmp_path / "series" / "notes.txt").write_text("hello")
        np.testing.assert_array_equal(read_volume(tmp_path / "series", 3)[0], pixels.T)

    def test_nothing_but_geometry_is_kept(self, tmp_path, write_series):
        image = nib.Nifti1Image(NOISE, AFFINE)
        image.header["descrip"] = b"Secret^Name"
        nib.save(image, tmp_path / "a.nii")
        write_series(tmp_path / "series")
        for source in ("a.nii", "series"):
            meta = read_volume(tmp_path / source, 3).meta
            assert set(meta) == {
                "affine",
                "source",
                "original_affine",
                "original_channel_dim",
                "space",
                "spatial_shape",
                "padding",
                "warnings",
                LENGTH_UNIT,
            }
            assert meta["source"] == str(tmp_path / source)

    def test_real_series_shows_the_anatomy_of_the_nifti_crops(self):
        """The series is stored in LPS. Of all flips, its RAS orientation must match the mean of other subjects best."""
        if not (DATA / "hippocampus_dicom").is_dir() or not (DATA / "hippocampus").is_dir():
            pytest.skip(f"no hippocampus data in {DATA}; set ATLAS_ISTN_DATA to its folder")
        to_ras = Compose([Orientation("RAS", labels=None), Resize((35, 51, 35))])

        def normalised(source):
            volume = to_ras(read_volume(source, 3)).as_tensor()
            volume = volume.clamp(max=float(volume.quantile(0.99)))
            return (volume - volume.mean()) / volume.std()

        mean = sum(normalised(case["image"]) for case in find_cases(str(DATA / "hippocampus"), "training")[:5])
        mean /= mean.std()
        series = normalised(DATA / "hippocampus_dicom" / "Study1")
        flips = [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]
        correlation = {axes: float((series.flip(axes) * mean).mean()) for axes in flips}
        # 0.61 as it is, 0.24 for the best flip
        assert correlation[()] > 0.2 + max(value for axes, value in correlation.items() if axes)


def strip_image(path):
    import pydicom

    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    for name in ("Rows", "Columns", "PixelData"):
        del dataset[name]
    dataset.save_as(path)


class TestCase:
    """The transform: image and label together."""

    def load(self, tmp_path, label, label_values=None, affine=AFFINE):
        case = {"image": save(tmp_path / "image.nii"), "label": save(tmp_path / "label.nii.gz", label, affine)}
        return LoadCased(["image", "label"], spatial_dims=3, label_values=label_values)(case)

    def test_label_values_become_classes(self, tmp_path):
        stored = np.random.default_rng(0).choice([0, 205, 85], NOISE.shape).astype(np.uint8)
        label = self.load(tmp_path, stored, [0, 85, 205])["label"]
        assert label.dtype == torch.int32
        np.testing.assert_array_equal(label[0], np.select([stored == 85, stored == 205], [1, 2], 0))
        np.testing.assert_allclose(label.affine, AFFINE, atol=1e-6)

    def test_values_that_are_classes_of_others_swap(self, tmp_path):
        stored = np.random.default_rng(0).integers(0, 3, NOISE.shape).astype(np.uint8)
        label = self.load(tmp_path, stored, [0, 2, 1])["label"]
        np.testing.assert_array_equal(label[0], np.array([0, 2, 1])[stored])

    def test_without_a_table_values_are_classes(self, tmp_path):
        stored = np.random.default_rng(0).integers(0, 4, NOISE.shape).astype(np.int16)
        np.testing.assert_array_equal(self.load(tmp_path, stored)["label"][0], stored)

    @pytest.mark.parametrize(
        ("values", "table", "message"),
        [
            ([0, 1, 7, 9], [0, 1], r"unexpected label values 7, 9\. Expected 0, 1"),
            ([0, 255], None, None),
            ([0, 0.5, -1], None, r"unexpected label values -1, 0\.5\. Expected whole numbers from 0"),
        ],
    )
    def test_values_outside_the_table(self, tmp_path, values, table, message):
        stored = np.resize(np.array(values, dtype=np.float32), NOISE.shape)
        if message is None:
            assert self.load(tmp_path, stored, table)["label"].max() == 255
            return
        with pytest.raises(InputError, match=r"label\.nii\.gz: " + message):
            self.load(tmp_path, stored, table)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_rounded_values_are_those_of_the_table(self, tmp_path, dtype):
        stored = np.random.default_rng(0).integers(0, 3, NOISE.shape)
        label = self.load(tmp_path, (stored * 1.0000003).astype(dtype), [0, 1, 2])["label"]
        np.testing.assert_array_equal(label[0], stored)
        with pytest.raises(InputError, match=r"unexpected label values 1\.01, 2\.02\. Expected 0, 1, 2"):
            self.load(tmp_path, (stored * 1.01).astype(np.float64), [0, 1, 2])

    @pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.float64])
    def test_identifiers_of_32_bits(self, tmp_path, dtype):
        values = [0, 70000, 614454277, 614454278, 2**31 - 1 if dtype == np.int32 else 2**32 - 1]
        stored = np.random.default_rng(0).integers(0, 5, NOISE.shape)
        label = self.load(tmp_path, np.array(values, dtype=dtype)[stored], values)["label"]
        np.testing.assert_array_equal(label[0], stored)
        with pytest.raises(InputError, match="unexpected label values 614454278\\. Expected"):
            self.load(tmp_path, np.array(values, dtype=dtype)[stored], [0, 70000, 614454277, values[-1]])

    @pytest.mark.skipif(not CASES.is_dir(), reason=f"no folder {CASES}")
    @pytest.mark.parametrize(
        ("folder", "values"), [("11_label_float_eps", [0, 1, 2]), ("22_label_ids_over_2p24", [0, 614454277, 312782574])]
    )
    def test_labels_that_were_once_refused(self, folder, values):
        (case,) = find_cases(str(CASES / folder), "test", with_labels=True)
        del case["case"]
        label = LoadCased(["image", "label"], 3, values)(case)["label"]
        assert label.unique().tolist() == [0, 1, 2]

    def test_other_shape(self, tmp_path):
        with pytest.raises(InputError, match=r"label\.nii\.gz: .* 6 × 5 × 3 voxels.*image\.nii 6 × 5 × 4"):
            self.load(tmp_path, np.zeros((6, 5, 3), np.uint8))

    def test_other_affine(self, tmp_path):
        label = np.zeros(NOISE.shape, np.uint8)
        self.load(tmp_path, label, affine=AFFINE + 0.05 * np.eye(4, k=3))  # of voxels that are 0.9 mm or larger
        with pytest.raises(
            InputError, match=r"label\.nii\.gz: the affine differs .*image\.nii, corners lie up to 0\.2"
        ):
            self.load(tmp_path, label, affine=AFFINE + 0.25 * np.eye(4, k=3))

    def test_empty_label_is_fine(self, tmp_path):
        assert self.load(tmp_path, np.zeros(NOISE.shape, np.uint8))["label"].max() == 0

    def test_image_alone_where_labels_may_be_missing(self, tmp_path):
        case = {"image": save(tmp_path / "image.nii"), "case": "a"}
        loaded = LoadCased(["image", "label"], spatial_dims=3, allow_missing_keys=True)(case)
        assert set(loaded) == {"image", "case"}
        with pytest.raises(KeyError, match="label"):
            LoadCased(["image", "label"], spatial_dims=3)(case)

    @pytest.mark.parametrize("shape", [NOISE.shape, (1, *NOISE.shape)])
    def test_voxels_that_are_loaded_already(self, tmp_path, shape):
        volume = read_volume(save(tmp_path / "image.nii"), 3)
        loaded = LoadCased("image", spatial_dims=3)({"image": volume.reshape(shape)})["image"]
        np.testing.assert_array_equal(loaded, volume)
        np.testing.assert_array_equal(loaded.affine, volume.affine)
        assert loaded.meta["source"] == volume.meta["source"]


class TestPictures:
    """Grey images and labels in the dresses that PNG files have."""

    @pytest.fixture
    def pixels(self):
        return np.random.default_rng(0).integers(0, 5, (8, 9)).astype(np.uint8)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
    def test_grey_saved_as_colour_is_grey(self, tmp_path, pixels, mode):
        Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
        for label in (False, True):
            np.testing.assert_array_equal(read_volume(tmp_path / "a.png", 2, label=label)[0], pixels.T)
        assert read_volume(tmp_path / "a.png", 2, channels=None).shape == (1, 9, 8)
        if mode == "RGB":  # what was trained with colours sees grey ones too
            assert read_volume(tmp_path / "a.png", 2, channels=3).shape == (3, 9, 8)

    def test_a_label_with_a_palette_is_its_indices(self, tmp_path, pixels):
        picture = Image.fromarray(pixels)
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 0])
        picture.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_volume(tmp_path / "a.png", 2, label=True)[0], pixels.T)
        save_png(tmp_path / "image.png", pixels * 50)
        case = {"image": str(tmp_path / "image.png"), "label": str(tmp_path / "a.png")}
        np.testing.assert_array_equal(LoadCased(("image", "label"), 2)(case)["label"][0], pixels.T)
        picture.convert("RGB").save(tmp_path / "a.png")
        with pytest.raises(InputError, match=r"a label in colours: \(0, 0, 0\), .*Convert it to a grey PNG"):
            read_volume(tmp_path / "a.png", 2, label=True)


class TestBadImages:
    """One message for each mistake, which names the file."""

    def refuse(self, source, message, spatial_dims=3):
        with pytest.raises(InputError, match=message) as caught:
            LoadCased("image", spatial_dims=spatial_dims)({"image": str(source)})
        assert str(caught.value).startswith(str(source))
        return caught.value

    def test_missing(self, tmp_path):
        self.refuse(tmp_path / "a.nii", "no such file")

    @pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.png"])
    @pytest.mark.parametrize("part", [0, 0.02, 0.7])
    def test_truncated(self, tmp_path, name, part):
        path = tmp_path / name
        if name == "a.png":
            save_png(path, np.random.default_rng(0).integers(0, 255, (30, 30)).astype(np.uint8))
        else:
            sitk.WriteImage(sitk.GetImageFromArray(NOISE), str(path))
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])
        error = self.refuse(path, "cannot be read", spatial_dims=2 if name == "a.png" else 3)
        assert error.__cause__ is not None

    def test_a_changed_byte(self, tmp_path):
        """The voxels unpack, and the checksum lies behind them, where nibabel does not look."""
        nib.save(
            nib.Nifti1Image(np.random.default_rng(0).random((8, 8, 8), np.float32), np.eye(4)), tmp_path / "a.nii.gz"
        )
        content = bytearray((tmp_path / "a.nii.gz").read_bytes())
        content[-6] ^= 1  # of the checksum itself
        (tmp_path / "a.nii.gz").write_bytes(content)
        self.refuse(tmp_path / "a.nii.gz", "cannot be read .*CRC")

    def test_memory_that_is_short_is_no_fault_of_the_file(self, tmp_path, monkeypatch):
        def want(*arguments, **options):
            raise MemoryError("Unable to allocate 3 GiB")

        path = save(tmp_path / "a.nii", NOISE)
        monkeypatch.setattr(nib, "load", want)
        with pytest.raises(MemoryError):
            read_volume(path, 3)

    def test_text_named_as_image(self, tmp_path):
        (tmp_path / "a.nii.gz").write_text("hello")
        self.refuse(tmp_path / "a.nii.gz", "cannot be read")

    def test_not_finite(self, tmp_path):
        array = NOISE.copy()
        array[0, 0, :2] = np.nan, np.inf
        self.refuse(save(tmp_path / "a.nii", array), "2 of 120 voxels are not finite")

    def test_constant(self, tmp_path):
        self.refuse(save(tmp_path / "a.nii", np.full_like(NOISE, 3)), "constant, all voxels are 3")

    def test_4d(self, tmp_path):
        self.refuse(save(tmp_path / "a.nii", np.stack([NOISE] * 3, -1)), r"3 channels .*4D")

    def test_5d(self, tmp_path):
        series = np.stack([NOISE] * 2, -1)
        self.refuse(save(tmp_path / "a.nii", np.stack([series] * 3, -1)), "has 4 dimensions")

    @pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
    def test_a_single_slice_is_an_image(self, tmp_path, suffix):
        image = sitk.GetImageFromArray(NOISE[None, :, :, 0])
        image.SetSpacing((1.5, 1.2, 8.0))
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        volume = read_volume(tmp_path / f"a{suffix}", 2)
        np.testing.assert_array_equal(volume[0], NOISE[:, :, 0].T)
        np.testing.assert_allclose(volume.pixdim[:2], (1.5, 1.2), rtol=1e-6)

    @pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0])
    def test_a_slice_out_of_the_xy_plane_has_its_own_coordinates(self, tmp_path, degrees):
        """Its shadow on that plane would be narrower, or none."""
        turn = np.eye(4)
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn[1:3, 1:3] = [[cosine, -sine], [sine, cosine]]
        affine = turn @ np.array([[1.5, 0, 0, 7], [0, 1.2, 0, -4], [0, 0, 8, 2], [0, 0, 0, 1.0]])
        volume = read_volume(save(tmp_path / "a.nii", NOISE[..., :1], affine), 2)
        regridded = Spacing((0.75, 0.6), align_corners=True)(volume)
        assert regridded.shape[1:] == (11, 9)
        assert ("x-y plane" in volume.meta["warnings"]) == (degrees > 0)
        shifted = affine.copy()
        shifted[:3, 3] += affine[:3, 1]
        with pytest.raises(InputError):
            check_same_grid(volume, read_volume(save(tmp_path / "b.nii", NOISE[..., :1], shifted), 2))

    def test_single_time_point_is_fine(self, tmp_path):
        assert read_volume(save(tmp_path / "a.nii", NOISE[..., None]), 3).shape == (1, *NOISE.shape)

    @pytest.mark.parametrize("channels", [2, 3, 4])
    def test_colour(self, tmp_path, channels):
        pixels = np.random.default_rng(0).integers(0, 255, (8, 9, channels)).astype(np.uint8)
        self.refuse(save_png(tmp_path / "a.png", pixels), f"{channels} channels .*colour", spatial_dims=2)

    def test_palette(self, tmp_path):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 5, (8, 9)).astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 0])
        image.save(tmp_path / "a.png")
        self.refuse(tmp_path / "a.png", "3 channels .*colour", spatial_dims=2)

    def test_other_dimension(self, tmp_path):
        self.refuse(save(tmp_path / "a.nii"), r"has 3 dimensions \(6 × 5 × 4\)\. Expected 2", spatial_dims=2)
        self.refuse(save_png(tmp_path / "a.png", np.eye(9, dtype=np.uint8)), "has 2 dimensions .* Expected 3")

    def test_singular_affine(self, tmp_path):
        affine = AFFINE.copy()
        affine[:, 1] = affine[:, 0]
        self.refuse(save(tmp_path / "a.nii", NOISE, affine), "neither sform nor qform of the header is a map")


class TestBadSeries:
    """DICOM folders; no message may hold a tag or a file name."""

    def refuse(self, folder, message):
        with pytest.raises(InputError, match=message) as caught:
            read_volume(folder, 3)
        text = str(caught.value)
        assert text.startswith(f"{folder}: ")
        assert "Secret" not in text
        assert ".dcm:" not in text
        assert "1.2.826" not in text  # the root of pydicom's identifiers

    @pytest.mark.parametrize("gone", [{2}, {1, 2}, {2, 4}])
    def test_missing_slices(self, tmp_path, write_series, gone):
        write_series(tmp_path / "series", lambda index, tags: index not in gone)
        self.refuse(tmp_path / "series", rf"missing slices, {len(gone)} in" if gone != {2, 4} else "missing|irregular")

    def test_duplicate_positions(self, tmp_path, write_series):
        def double(index, tags):
            if index == 3:
                tags["ImagePositionPatient"] = [10, 20, 30 + 2 * 2]

        write_series(tmp_path / "series", double)
        self.refuse(tmp_path / "series", "duplicate positions, 1 of 6")

    def test_mixed_orientations(self, tmp_path, write_series):
        def turn(index, tags):
            if index >= 4:
                tags["ImageOrientationPatient"] = [1, 0, 0, 0, 0, -1]

        write_series(tmp_path / "series", turn)
        self.refuse(tmp_path / "series", "mixed orientations, 4 of 6")

    def test_irregular_distances(self, tmp_path, write_series):
        def move(index, tags):
            if index == 5:
                tags["ImagePositionPatient"] = [10, 20, 30 + 2 * 5 + 0.7]

        write_series(tmp_path / "series", move)
        self.refuse(tmp_path / "series", "irregular slice distances, from 2 to 2.7 mm")

    def test_rounded_positions_are_fine(self, tmp_path, write_series):
        def move(index, tags):
            tags["ImagePositionPatient"] = [10, 20, round(30 + 2 * index + 0.04 * (-1) ** index, 2)]

        write_series(tmp_path / "series", move)
        assert len(read_series(tmp_path / "series").frames) == 6

    def test_gantry_tilt(self, tmp_path, write_series):
        def tilt(index, tags):
            tags["ImagePositionPatient"] = [10, 20 + 0.4 * index, 30 + 2 * index]

        write_series(tmp_path / "series", tilt)
        self.refuse(tmp_path / "series", r"by up to 2 mm in their plane \(gantry tilt\)")

    def test_several_series(self, tmp_path, write_series):
        write_series(tmp_path / "other")
        write_series(tmp_path / "series")
        for path in (tmp_path / "other").iterdir():
            path.rename(tmp_path / "series" / f"other_{path.name}")
        self.refuse(tmp_path / "series", "2 DICOM series in one folder")

    def test_other_pixel_spacing(self, tmp_path, write_series):
        write_series(tmp_path / "series", lambda index, tags: tags.update(PixelSpacing=[1, 1]) if index == 2 else None)
        self.refuse(tmp_path / "series", "1 of 6 DICOM slices differ from the first in size or pixel spacing")

    def test_one_slice(self, tmp_path, write_series):
        write_series(tmp_path / "series", lambda index, tags: index == 0)
        self.refuse(tmp_path / "series", "one DICOM slice")

    @pytest.mark.parametrize(
        "tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SeriesInstanceUID"]
    )
    def test_without_geometry(self, tmp_path, write_series, tag):
        write_series(tmp_path / "series", lambda index, tags: tags.pop(tag) and None)
        self.refuse(tmp_path / "series", "no position, orientation")

    @pytest.mark.parametrize("tag", ["SamplesPerPixel", "NumberOfFrames"])
    def test_colour_and_multi_frame(self, tmp_path, write_series, tag):
        write_series(tmp_path / "series", lambda index, tags: tags.update({tag: 3}))
        self.refuse(tmp_path / "series", "a colour image, or holds several images")

    @pytest.mark.parametrize("part", [0, 0.05, 0.99])
    def test_truncated_slice(self, tmp_path, write_series, part):
        write_series(tmp_path / "series")
        path = tmp_path / "series" / "6.dcm"
        path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
        self.refuse(tmp_path / "series", "cannot be read|not readable|missing slices|damaged")

    def test_no_series(self, tmp_path):
        self.refuse(tmp_path, "no readable DICOM series")
